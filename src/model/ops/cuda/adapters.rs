//! Adapters: what they add comes after the product, by kernels of their own.

use ponder_kernels_cuda::Rows;
use ponder_kernels_cuda::rows::{self, FloatMatrix, Norm};

use super::super::{AdaptedInput, Additions, AddsAfter, OpsError};
use super::CudaOps;

/// The two factors, of each product that the adapter changes.
pub type LowRank = Vec<Option<[FloatMatrix; 2]>>;

impl AddsAfter for CudaOps {
    fn add_low_rank<const N: usize>(
        &mut self,
        additions: &Additions<'_, Self>,
        mut outs: [&mut Rows; N],
    ) -> Result<(), OpsError> {
        let step = additions.step;
        for (group, factors) in additions.factors.iter().enumerate() {
            let Some(list) = step.inputs.group(group, step.rows) else {
                continue;
            };
            let Some(factors) = factors else { continue };
            let input = match &additions.input {
                AdaptedInput::Plain(rows) => rows::AdaptedInput::Plain(rows),
                AdaptedInput::Normed { rows, weight, eps } => rows::AdaptedInput::Normed {
                    rows,
                    norm: Norm { weight, eps: *eps },
                },
            };
            let mut factors = factors.iter();
            let products = outs.each_mut().map(|out| {
                let pair = factors.next().and_then(Option::as_ref);
                let factors = pair.map(|[down, up]| rows::LowRank { down, up });
                (factors, &mut **out)
            });
            rows::add_low_rank(&self.gpu, &mut self.low_rank, list, input, products)?;
        }
        Ok(())
    }
}
