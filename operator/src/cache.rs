//! What the cluster holds, as the watches tell it: one [`Cache`] per kind, found by name or UID.
//!
//! A write's answer goes into the cache at once, so that the next look does not write again what
//! the watch has not told yet. Older news never replace newer ones.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Resource, ResourceExt as _};
use lithe::names::LABEL_UID;
use serde::de::DeserializeOwned;

/// A watch is renewed after this time, so that one whose connection died silently is noticed.
pub const WATCH_SECONDS: u32 = 60;

/// (namespace, name)
pub type Key = (String, String);

/// The key of `object`.
pub fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The UID of the ModelDeployment that `object` belongs to, by its label.
pub fn owner_uid<K: Resource>(object: &K) -> Option<String> {
    object.meta().labels.as_ref().and_then(|labels| labels.get(LABEL_UID)).cloned()
}

/// The UID of `object` itself.
pub fn own_uid<K: Resource>(object: &K) -> Option<String> {
    object.meta().uid.clone()
}

struct State<K> {
    objects: HashMap<Key, Arc<K>>,
    by_uid: HashMap<String, BTreeSet<Key>>,
    /// Deleted a moment ago: (key, resource version); a late answer must not bring it back.
    gone: HashMap<Key, u64>,
}

/// All objects of one kind that concern us.
pub struct Cache<K> {
    state: RwLock<State<K>>,
    index: fn(&K) -> Option<String>,
    ready: AtomicBool,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// First sight.
    New,
    /// Its spec, labels or annotations changed.
    Spec,
    /// Only its status changed.
    Status,
    /// It is gone.
    Deleted,
}

impl<K: Resource<DynamicType = ()> + Clone> Cache<K> {
    /// An empty cache whose objects are also found by `index`.
    pub fn new(index: fn(&K) -> Option<String>) -> Self {
        let state = State { objects: HashMap::new(), by_uid: HashMap::new(), gone: HashMap::new() };
        Self { state: RwLock::new(state), index, ready: AtomicBool::new(false) }
    }

    /// The object with `key`.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).objects.get(key).cloned()
    }

    /// The objects with index value `uid`, by name.
    pub fn of(&self, uid: &str) -> Vec<Arc<K>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let keys = state.by_uid.get(uid).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.objects.keys().cloned().collect()
    }

    /// Whether the first list is complete.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Takes `object` in, unless something newer is known; says what changed.
    pub fn put(&self, mut object: K) -> Option<Change> {
        object.meta_mut().managed_fields = None;
        let key = key(&object);
        let version = version(&object);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.gone.get(&key).is_some_and(|gone| version <= *gone) {
            return None;
        }
        let old = state.objects.get(&key).cloned();
        if old.as_ref().is_some_and(|old| version <= self::version(old.as_ref())) {
            return None;
        }
        let change = old.as_ref().map_or(Change::New, |old| compare(old.meta(), object.meta()));
        if let Some(uid) = old.as_ref().and_then(|old| (self.index)(old)) {
            state.unindex(&uid, &key);
        }
        if let Some(uid) = (self.index)(&object) {
            state.by_uid.entry(uid).or_default().insert(key.clone());
        }
        state.objects.insert(key, Arc::new(object));
        Some(change)
    }

    /// Forgets the object with `key`; `version` is the one of its deletion.
    pub fn remove(&self, key: &Key, version: u64) -> Option<Arc<K>> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.objects.get(key).is_some_and(|known| self::version(known.as_ref()) > version) {
            return None;
        }
        let old = state.objects.remove(key)?;
        if let Some(uid) = (self.index)(&old) {
            state.unindex(&uid, key);
        }
        if state.gone.len() > 1000 {
            state.gone.clear();
        }
        state.gone.insert(key.clone(), version);
        Some(old)
    }
}

impl<K> State<K> {
    fn unindex(&mut self, uid: &str, key: &Key) {
        if let Some(keys) = self.by_uid.get_mut(uid) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_uid.remove(uid);
            }
        }
    }
}

/// The resource version as a number: the API promises that they compare so.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn compare(
    old: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    new: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Change {
    // Kinds without a generation change as a whole.
    let same = old.generation == new.generation
        && old.labels == new.labels
        && old.annotations == new.annotations
        && old.owner_references == new.owner_references
        && old.deletion_timestamp == new.deletion_timestamp
        && new.generation.is_some();
    if same { Change::Status } else { Change::Spec }
}

/// Keeps `cache` as `api` tells until the process ends; `tell` hears of every change.
pub async fn follow<K>(
    api: Api<K>,
    labels: Option<&str>,
    cache: Arc<Cache<K>>,
    trim: fn(&mut K),
    tell: impl Fn(&K, Change),
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut config = watch::Config::default().timeout(WATCH_SECONDS);
    if let Some(labels) = labels {
        config = config.labels(labels);
    }
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    let mut listed: HashSet<Key> = HashSet::new();
    loop {
        match events.try_next().await {
            Ok(Some(Event::Init)) => listed.clear(),
            Ok(Some(Event::InitApply(mut object))) => {
                trim(&mut object);
                listed.insert(key(&object));
                take_in(&cache, object, &tell);
            }
            Ok(Some(Event::InitDone)) => {
                for missing in cache.keys().into_iter().filter(|key| !listed.contains(key)) {
                    if let Some(old) = cache.get(&missing) {
                        cache.remove(&missing, version(old.as_ref()));
                        tell(&old, Change::Deleted);
                    }
                }
                cache.ready.store(true, Ordering::Release);
            }
            Ok(Some(Event::Apply(mut object))) => {
                trim(&mut object);
                take_in(&cache, object, &tell);
            }
            Ok(Some(Event::Delete(object))) => {
                if cache.remove(&key(&object), version(&object)).is_some() {
                    tell(&object, Change::Deleted);
                }
            }
            Ok(None) => return,
            // The stream backs off and lists anew by itself.
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch"),
        }
    }
}

fn take_in<K: Resource<DynamicType = ()> + Clone>(
    cache: &Cache<K>,
    object: K,
    tell: &impl Fn(&K, Change),
) {
    let place = key(&object);
    if let Some(change) = cache.put(object)
        && let Some(known) = cache.get(&place)
    {
        tell(&known, change);
    }
}

/// For kinds that are kept as they come.
pub fn whole<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = object.annotations_mut_opt() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

trait AnnotationsMut {
    fn annotations_mut_opt(&mut self) -> Option<&mut std::collections::BTreeMap<String, String>>;
}

impl<K: Resource> AnnotationsMut for K {
    fn annotations_mut_opt(&mut self) -> Option<&mut std::collections::BTreeMap<String, String>> {
        self.meta().annotations.is_some().then(|| self.annotations_mut())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceAccount;

    use super::*;

    fn object(name: &str, uid: &str, version: u64) -> ServiceAccount {
        let mut object = ServiceAccount::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(version.to_string());
        object.metadata.labels = Some([(LABEL_UID.to_owned(), uid.to_owned())].into());
        object
    }

    #[test]
    fn older_news_never_replace_newer_ones() {
        let cache = Cache::new(owner_uid);
        assert_eq!(cache.put(object("a", "u", 9)), Some(Change::New));
        assert_eq!(cache.put(object("a", "u", 7)), None);
        assert_eq!(cache.put(object("a", "u", 11)), Some(Change::Spec));
    }

    #[test]
    fn a_late_answer_does_not_bring_back_what_was_deleted() {
        let cache = Cache::new(owner_uid);
        cache.put(object("a", "u", 9));
        assert!(cache.remove(&("ns".into(), "a".into()), 12).is_some());
        assert_eq!(cache.put(object("a", "u", 10)), None);
        assert_eq!(cache.put(object("a", "u", 13)), Some(Change::New));
    }

    #[test]
    fn objects_are_found_by_the_uid_of_their_owner() {
        let cache = Cache::new(owner_uid);
        cache.put(object("a", "u", 1));
        cache.put(object("b", "v", 2));
        cache.put(object("a", "v", 3));
        let names: Vec<_> = cache.of("v").iter().map(|object| object.name_any()).collect();
        assert_eq!((names, cache.of("u").len()), (vec!["a".to_owned(), "b".to_owned()], 0));
    }
}
