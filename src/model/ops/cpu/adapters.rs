//! Adapted products by the kernels, in the sections of the products themselves.

use ponder_kernels::{Activations, Addition, Glu, Product, glu_adapted, matmul_adapted};

use super::super::{AdapterOps, Additions, Linear, OpsError};
use super::layer::product;
use super::{CpuOps, CpuRows};

fn additions<'a>(of_step: &'a Additions<'_, CpuOps>) -> Vec<Addition<'a>> {
    let of_group = of_step.factors.iter().enumerate();
    let of_group = of_group.filter_map(|(group, factors)| {
        let rows = of_step.step.group_rows(group);
        factors.map(|factors| Addition { rows, factors })
    });
    of_group.collect()
}

impl AdapterOps for CpuOps {
    fn project_adapted<const N: usize>(
        &mut self,
        x: &Activations,
        linears: [&Linear<Self>; N],
        outs: [&mut CpuRows; N],
        of_step: &Additions<'_, Self>,
    ) -> Result<(), OpsError> {
        let mut outs = outs.into_iter();
        let products = linears.map(|linear| {
            let out = outs.next().expect("an output a product; this is a bug");
            out.shape(x.num_rows(), linear.weights.out_features());
            product(linear, &mut out.values)
        });
        let additions = additions(of_step);
        matmul_adapted(&self.pool, x, products, &additions, &mut self.low_rank);
        Ok(())
    }

    fn project_add_adapted(
        &mut self,
        x: &Activations,
        linear: &Linear<Self>,
        out: &mut CpuRows,
        of_step: &Additions<'_, Self>,
    ) -> Result<(), OpsError> {
        let product = Product {
            accumulate: true,
            ..product(linear, &mut out.values)
        };
        let additions = additions(of_step);
        matmul_adapted(&self.pool, x, [product], &additions, &mut self.low_rank);
        Ok(())
    }

    fn gate_up_adapted(
        &mut self,
        x: &Activations,
        [gate, up]: [&Linear<Self>; 2],
        glu: Glu,
        of_step: &Additions<'_, Self>,
        _gated: [&mut CpuRows; 2],
        out: &mut Activations,
    ) -> Result<(), OpsError> {
        let weights = [&gate.weights, &up.weights];
        let buffers = (&additions(of_step)[..], &mut self.low_rank);
        glu_adapted(&self.pool, x, weights, glu, out, buffers);
        Ok(())
    }
}
