//! Adapters by their definition: what they add comes after the product.

use ponder_kernels::Glu;

use super::super::{AdaptedInput, AdapterOps, Additions, LayerOps, Linear, OpsError, RowSet};
use super::{Dense, ReferenceOps, Rows, add, rms_norm};

/// The two factors, of each product that the adapter changes.
pub(in crate::model) type LowRank = Vec<Option<[Dense; 2]>>;

impl ReferenceOps {
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

impl AdapterOps for ReferenceOps {
    fn project_adapted<const N: usize>(
        &mut self,
        x: &Rows,
        linears: [&Linear<Self>; N],
        mut outs: [&mut Rows; N],
        additions: &Additions<'_, Self>,
    ) -> Result<(), OpsError> {
        self.project(x, linears, outs.each_mut().map(|out| &mut **out))?;
        self.add_low_rank(additions, outs)
    }

    fn project_add_adapted(
        &mut self,
        x: &Rows,
        linear: &Linear<Self>,
        out: &mut Rows,
        additions: &Additions<'_, Self>,
    ) -> Result<(), OpsError> {
        self.project_add(x, linear, out)?;
        self.add_low_rank(additions, [out])
    }

    fn gate_up_adapted(
        &mut self,
        x: &Rows,
        linears: [&Linear<Self>; 2],
        glu: Glu,
        additions: &Additions<'_, Self>,
        [gate, up]: [&mut Rows; 2],
        out: &mut Rows,
    ) -> Result<(), OpsError> {
        self.project_adapted(x, linears, [&mut *gate, &mut *up], additions)?;
        self.activate(gate, up, glu, out)
    }
}
