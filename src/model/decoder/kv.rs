//! The KV cache of a decoder: one pool of blocks for all layers, or a second one for those with a
//! sliding window, which are done with a block once every row has moved past it.

use super::{Decoder, LocalKv};
use crate::model::causal_lm::{BlockId, ForwardError, LocalCache};
use crate::model::ops::{KvShape, Ops};

/// The pool of the layers with a window, where they have their own.
pub(super) struct LocalPool<O: Ops> {
    /// What was asked for, before anything is allocated.
    num_blocks: Option<usize>,
    pub cache: Option<O::KvCache>,
    pub shape: Option<KvShape>,
}

impl<O: Ops> Default for LocalPool<O> {
    fn default() -> Self {
        Self {
            num_blocks: None,
            cache: None,
            shape: None,
        }
    }
}

impl<O: Ops> Decoder<O> {
    /// The layers with a window, where the device can keep them apart.
    pub(super) fn local_kv(&self) -> Option<LocalKv> {
        let window = self.config.sliding_window?;
        let num_local = self.layers.iter().filter(|layer| layer.attention.is_local);
        let bytes_of_layer = self.info.kv_bytes_per_token / self.config.num_layers.max(1);
        let kv_bytes_per_token = num_local.count() * bytes_of_layer;
        let is_kept_apart = self.ops.has_local_cache() && kv_bytes_per_token > 0;
        is_kept_apart.then_some(LocalKv {
            window,
            kv_bytes_per_token,
        })
    }

    /// The layer's place in the cache that holds its keys and values, and whether that is the pool
    /// of the layers with a window.
    pub(in crate::model) fn cache_layer(&self, index: usize) -> (usize, bool) {
        if self.local_pool.cache.is_none() {
            return (index, false);
        }
        let is_local = self.layers[index].attention.is_local;
        let before = self.layers[..index].iter();
        let place = before.filter(|layer| layer.attention.is_local == is_local);
        (place.count(), is_local)
    }

    /// The cache that holds a layer's keys and values, and the layer's place in it.
    pub(in crate::model) fn cache_of(&self, index: usize) -> Option<(&O::KvCache, usize)> {
        let (place, is_local) = self.cache_layer(index);
        let cache = match is_local {
            true => self.local_pool.cache.as_ref(),
            false => self.kv_cache.as_ref(),
        };
        cache.map(|cache| (cache, place))
    }

    /// Allocates one pool, or both.
    pub(super) fn allocate_pools(
        &mut self,
        num_blocks: usize,
        block_size: usize,
    ) -> Result<(), ForwardError> {
        let config = &self.config;
        let shape = KvShape {
            num_layers: config.num_layers,
            num_blocks,
            block_size,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: self.kv_dtype,
        };
        let Some(num_local_blocks) = self.local_pool.num_blocks else {
            self.kv_cache = Some(self.ops.kv_cache(&shape)?);
            self.kv_shape = Some(shape);
            return Ok(());
        };
        let num_local = self.layers.iter().filter(|layer| layer.attention.is_local);
        let num_local = num_local.count();
        let local = KvShape {
            num_layers: num_local,
            num_blocks: num_local_blocks,
            ..shape
        };
        let shape = KvShape {
            num_layers: config.num_layers - num_local,
            ..shape
        };
        self.kv_cache = Some(self.ops.kv_cache(&shape)?);
        self.kv_shape = Some(shape);
        self.local_pool.cache = Some(self.ops.kv_cache(&local)?);
        self.local_pool.shape = Some(local);
        Ok(())
    }
}

impl<O: Ops> LocalCache for Decoder<O> {
    fn split(&mut self, num_blocks: usize) {
        self.local_pool.num_blocks = Some(num_blocks);
    }

    fn copy_local_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        let shape = self.local_pool.shape.ok_or(ForwardError::NoKvCache)?;
        Self::check_copies(copies, &shape)?;
        let cache = self.local_pool.cache.as_mut();
        let cache = cache.ok_or(ForwardError::NoKvCache)?;
        Ok(self.ops.copy_blocks(cache, copies)?)
    }
}
