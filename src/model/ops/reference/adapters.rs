//! Adapters by their definition: what they add comes after the product.

use super::super::{AdaptedInput, Additions, AddsAfter, OpsError, RowSet};
use super::{Dense, ReferenceOps, Rows, add, rms_norm};

/// The two factors, of each product that the adapter changes.
pub(in crate::model) type LowRank = Vec<Option<[Dense; 2]>>;

impl AddsAfter for ReferenceOps {
    fn add_low_rank<const N: usize>(
        &mut self,
        additions: &Additions<'_, Self>,
        mut outs: [&mut Rows; N],
    ) -> Result<(), OpsError> {
        let step = additions.step;
        for (group, factors) in step.inputs.groups.iter().zip(&additions.factors) {
            self.run()?;
            let rows = match step.rows {
                RowSet::All => &group.rows,
                RowSet::Kept => &group.kept,
            };
            for (factors, out) in factors.iter().copied().flatten().zip(&mut outs) {
                let Some([down, up]) = factors else { continue };
                for row in rows {
                    let x = match &additions.input {
                        AdaptedInput::Plain(x) => x[*row].clone(),
                        AdaptedInput::Normed { rows, weight, eps } => {
                            rms_norm(&rows[*row], weight, *eps)
                        }
                    };
                    add(&mut out[*row], 1.0, &up.product(0, &down.product(0, &x)));
                }
            }
        }
        Ok(())
    }
}
