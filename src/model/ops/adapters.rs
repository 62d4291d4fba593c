//! Products with what adapters add to the rows that use them.
//!
//! Rows that use no adapter get the bits of the plain operations.

use ponder_kernels::Glu;

use super::{Additions, LayerOps, Linear, OpsError};

/// The products of a layer, adapted.
pub trait AdapterOps: LayerOps {
    /// [`LayerOps::project`], then `out[row] += input[row] · down^T · up^T` at each adapter's rows.
    fn project_adapted<const N: usize>(
        &mut self,
        x: &Self::Activations,
        linears: [&Linear<Self>; N],
        outs: [&mut Self::Rows; N],
        additions: &Additions<'_, Self>,
    ) -> Result<(), OpsError>;

    /// [`LayerOps::project_add`] with the same.
    fn project_add_adapted(
        &mut self,
        x: &Self::Activations,
        linear: &Linear<Self>,
        out: &mut Self::Rows,
        additions: &Additions<'_, Self>,
    ) -> Result<(), OpsError>;

    /// [`LayerOps::gate_up`] with the same, before the gate. `gated` is where an implementation
    /// that needs them has the two products; the first of them is then what an adapter of the down
    /// product reads.
    fn gate_up_adapted(
        &mut self,
        x: &Self::Activations,
        gate_and_up: [&Linear<Self>; 2],
        glu: Glu,
        additions: &Additions<'_, Self>,
        gated: [&mut Self::Rows; 2],
        out: &mut Self::Activations,
    ) -> Result<(), OpsError>;
}

/// Implementations that add what adapters make after the product, by operations of their own.
pub trait AddsAfter: LayerOps {
    /// `out[row] += input[row] · down^T · up^T` at each adapter's rows.
    fn add_low_rank<const N: usize>(
        &mut self,
        additions: &Additions<'_, Self>,
        outs: [&mut Self::Rows; N],
    ) -> Result<(), OpsError>;
}

impl<O: AddsAfter> AdapterOps for O {
    fn project_adapted<const N: usize>(
        &mut self,
        x: &O::Activations,
        linears: [&Linear<O>; N],
        mut outs: [&mut O::Rows; N],
        additions: &Additions<'_, O>,
    ) -> Result<(), OpsError> {
        self.project(x, linears, outs.each_mut().map(|out| &mut **out))?;
        self.add_low_rank(additions, outs)
    }

    fn project_add_adapted(
        &mut self,
        x: &O::Activations,
        linear: &Linear<O>,
        out: &mut O::Rows,
        additions: &Additions<'_, O>,
    ) -> Result<(), OpsError> {
        self.project_add(x, linear, out)?;
        self.add_low_rank(additions, [out])
    }

    fn gate_up_adapted(
        &mut self,
        x: &O::Activations,
        linears: [&Linear<O>; 2],
        glu: Glu,
        additions: &Additions<'_, O>,
        [gate, up]: [&mut O::Rows; 2],
        out: &mut O::Activations,
    ) -> Result<(), OpsError> {
        self.project_adapted(x, linears, [&mut *gate, &mut *up], additions)?;
        self.activate(gate, up, glu, out)
    }
}
