//! Which adapters are loaded, and whose they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::tenant::Tenant;
use crate::engine::AdapterId;
use crate::trace::AdapterIdentity;

/// Adapters at once.
const MAX_ADAPTERS: usize = 32;
/// Adapters of one key, where there are keys.
const MAX_ADAPTERS_PER_KEY: usize = 8;
/// The weights of all adapters that requests have loaded take so many times what one key's may.
const KEYS_OF_WEIGHTS: u64 = 4;

/// Who loaded an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::api) enum Owner {
    /// At the start: it is there for everybody, and nobody unloads it.
    Operator,
    /// By a request: it is there for the requests of the same key.
    Key(Tenant),
}

/// A loaded adapter.
#[derive(Debug, Clone)]
pub(in crate::api) struct Adapter {
    pub id: AdapterId,
    pub identity: AdapterIdentity,
    /// Its folder as clients may see it.
    pub folder: String,
    /// Of its weights, as they are stored.
    pub num_bytes: u64,
    pub created: u64,
}

/// Why no adapter can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::api) enum NoPlace {
    #[error("{MAX_ADAPTERS} adapters are loaded: unload some")]
    All,
    #[error("a key may have {MAX_ADAPTERS_PER_KEY} adapters: unload some")]
    Key,
}

#[derive(Default)]
struct Table {
    adapters: BTreeMap<(Owner, String), Adapter>,
    /// Loads that are asked for and not done, by their owners.
    loading: BTreeMap<Owner, usize>,
}

impl Table {
    fn num_adapters(&self, is_counted: impl Fn(Owner) -> bool) -> usize {
        let loaded = self.adapters.keys().map(|(owner, _)| (*owner, 1));
        let loading = self.loading.iter().map(|(owner, num)| (*owner, *num));
        let counted = loaded
            .chain(loading)
            .filter(|(owner, _)| is_counted(*owner));
        counted.map(|(_, num)| num).sum()
    }
}

/// The loaded adapters by their owners and names.
#[derive(Default)]
pub(in crate::api) struct AdapterRegistry {
    table: Arc<Mutex<Table>>,
    /// Held by whoever loads or unloads: one at a time.
    pub changing: tokio::sync::Mutex<()>,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AdapterRegistry {
    /// A place for an adapter that is about to be loaded.
    pub fn begin(&self, owner: Owner, has_keys: bool) -> Result<Loading, NoPlace> {
        let mut table = lock(&self.table);
        if table.num_adapters(|_| true) >= MAX_ADAPTERS {
            return Err(NoPlace::All);
        }
        let is_key = has_keys && owner != Owner::Operator;
        if is_key && table.num_adapters(|it| it == owner) >= MAX_ADAPTERS_PER_KEY {
            return Err(NoPlace::Key);
        }
        *table.loading.entry(owner).or_default() += 1;
        Ok(Loading {
            table: Arc::clone(&self.table),
            owner,
        })
    }

    /// Bytes of weights that `owner` may still load, of `max_bytes` for a key.
    pub fn bytes_left(&self, owner: Owner, has_keys: bool, max_bytes: u64) -> u64 {
        if owner == Owner::Operator {
            return u64::MAX;
        }
        let table = lock(&self.table);
        let used = |is_counted: &dyn Fn(Owner) -> bool| -> u64 {
            let adapters = table.adapters.iter();
            let counted = adapters.filter(|((owner, _), _)| is_counted(*owner));
            counted.map(|(_, adapter)| adapter.num_bytes).sum()
        };
        let all = max_bytes.saturating_mul(KEYS_OF_WEIGHTS);
        let all = all.saturating_sub(used(&|it| it != Owner::Operator));
        match has_keys {
            true => all.min(max_bytes.saturating_sub(used(&|it| it == owner))),
            false => all.min(max_bytes),
        }
    }

    pub fn insert(&self, owner: Owner, adapter: Adapter) {
        let name = adapter.identity.name.clone();
        lock(&self.table).adapters.insert((owner, name), adapter);
    }

    pub fn remove(&self, tenant: Tenant, name: &str) -> Option<Adapter> {
        let own = (Owner::Key(tenant), name.to_owned());
        lock(&self.table).adapters.remove(&own)
    }

    /// What a key's requests mean by a name: its own adapter, or the operator's.
    pub fn find(&self, tenant: Tenant, name: &str) -> Option<Adapter> {
        let table = lock(&self.table);
        let of = |owner| table.adapters.get(&(owner, name.to_owned()));
        of(Owner::Key(tenant))
            .or_else(|| of(Owner::Operator))
            .cloned()
    }

    /// The operator has loaded an adapter of this name.
    pub fn is_operators(&self, name: &str) -> bool {
        let key = (Owner::Operator, name.to_owned());
        lock(&self.table).adapters.contains_key(&key)
    }

    /// What `owner` may not load a second time.
    pub fn is_taken(&self, owner: Owner, name: &str) -> bool {
        let table = lock(&self.table);
        [owner, Owner::Operator]
            .into_iter()
            .any(|owner| table.adapters.contains_key(&(owner, name.to_owned())))
    }

    /// What a key's requests may name, by name.
    pub fn all(&self, tenant: Tenant) -> Vec<Adapter> {
        let table = lock(&self.table);
        let mut seen = BTreeMap::new();
        for ((owner, name), adapter) in &table.adapters {
            // The operator's come first: a key's own takes the place of one.
            if matches!(owner, Owner::Operator) || *owner == Owner::Key(tenant) {
                seen.insert(name.clone(), adapter.clone());
            }
        }
        seen.into_values().collect()
    }
}

/// An adapter that is being loaded: it counts from when it is asked for.
pub(in crate::api) struct Loading {
    table: Arc<Mutex<Table>>,
    owner: Owner,
}

impl Drop for Loading {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(num) = table.loading.get_mut(&self.owner) {
            *num -= 1;
            if *num == 0 {
                table.loading.remove(&self.owner);
            }
        }
    }
}

/// What a request's `model` names.
#[derive(Debug, Clone)]
pub(in crate::api) struct TargetModel {
    /// As answers carry it.
    pub name: String,
    pub adapter: Option<Adapter>,
}

impl TargetModel {
    pub fn adapter_id(&self) -> Option<AdapterId> {
        self.adapter.as_ref().map(|adapter| adapter.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Tenant = Tenant(1);
    const SECOND: Tenant = Tenant(2);

    fn adapter(id: u32, name: &str, num_bytes: u64) -> Adapter {
        Adapter {
            id: AdapterId(id),
            identity: AdapterIdentity {
                name: name.to_owned(),
                hash: String::new(),
            },
            folder: String::new(),
            num_bytes,
            created: 0,
        }
    }

    fn ids(registry: &AdapterRegistry, tenant: Tenant) -> Vec<u32> {
        let adapters = registry.all(tenant);
        adapters.into_iter().map(|adapter| adapter.id.0).collect()
    }

    #[test]
    fn a_key_sees_its_own_and_the_operators() {
        let registry = AdapterRegistry::default();
        registry.insert(Owner::Key(FIRST), adapter(1, "mine", 0));
        registry.insert(Owner::Key(SECOND), adapter(2, "mine", 0));
        registry.insert(Owner::Operator, adapter(3, "ours", 0));
        assert_eq!(
            (ids(&registry, FIRST), ids(&registry, SECOND)),
            (vec![1, 3], vec![2, 3])
        );
        assert_eq!(ids(&registry, Tenant::EVERYBODY), [3]);
        let found = |tenant, name| registry.find(tenant, name).map(|found| found.id.0);
        assert_eq!(found(FIRST, "mine"), Some(1));
        assert_eq!(found(SECOND, "mine"), Some(2));
        assert_eq!(found(SECOND, "ours"), Some(3));
        assert_eq!(found(Tenant::EVERYBODY, "mine"), None);
        assert!(registry.is_taken(Owner::Key(FIRST), "ours"));
        // A request was quicker than the operator: its key goes on with its own.
        registry.insert(Owner::Operator, adapter(4, "mine", 0));
        assert_eq!(ids(&registry, FIRST), [1, 3]);
        assert!(registry.remove(FIRST, "ours").is_none());
        assert_eq!(registry.remove(FIRST, "mine").map(|it| it.id.0), Some(1));
        assert_eq!(ids(&registry, FIRST), [4, 3]);
        assert_eq!(ids(&registry, SECOND), [2, 3]);
    }

    #[test]
    fn loads_count_from_when_they_are_asked_for() {
        let registry = AdapterRegistry::default();
        let key = |tenant| Owner::Key(Tenant(tenant));
        let begin = |tenant| registry.begin(key(tenant), true);
        let mut held: Vec<Loading> = (0..MAX_ADAPTERS_PER_KEY)
            .map(|_| begin(1).unwrap())
            .collect();
        assert_eq!(begin(1).err(), Some(NoPlace::Key));
        held.pop();
        let again = begin(1).unwrap();
        registry.insert(key(1), adapter(1, "a", 0));
        drop(again);
        assert_eq!(begin(1).err(), Some(NoPlace::Key));
        for tenant in 2..=4 {
            held.extend((0..MAX_ADAPTERS_PER_KEY).map(|_| begin(tenant).unwrap()));
        }
        assert_eq!(begin(5).err(), Some(NoPlace::All));
        drop(held);
        assert!(lock(&registry.table).loading.is_empty());
        // Without keys there is one for all places.
        let alone: Vec<_> = (1..MAX_ADAPTERS)
            .map(|_| registry.begin(key(0), false).map(drop))
            .collect();
        assert!(alone.iter().all(Result::is_ok));
    }

    #[test]
    fn weights_are_counted_by_key_and_together() {
        let registry = AdapterRegistry::default();
        let left = |tenant, has_keys| registry.bytes_left(Owner::Key(tenant), has_keys, 10);
        registry.insert(Owner::Operator, adapter(0, "large", 1000));
        assert_eq!(left(FIRST, true), 10);
        registry.insert(Owner::Key(FIRST), adapter(1, "a", 4));
        registry.insert(Owner::Key(FIRST), adapter(2, "b", 4));
        assert_eq!((left(FIRST, true), left(SECOND, true)), (2, 10));
        assert_eq!(left(FIRST, false), 10);
        for tenant in 3..6 {
            registry.insert(Owner::Key(Tenant(tenant)), adapter(3, "c", 10));
        }
        assert_eq!((left(FIRST, true), left(SECOND, true)), (2, 2));
        assert_eq!(left(FIRST, false), 2);
        assert_eq!(registry.bytes_left(Owner::Operator, true, 10), u64::MAX);
    }
}
