//! What the cluster holds, as the watches tell it: one [`Cache`] per kind, found by name or UID.
//!
//! A write's answer goes into the cache at once, so that the next look does not write again what
//! the watch has not told yet. Older news never replace newer ones.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, TryStreamExt as _};
use kube::Resource;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use lithe::names::LABEL_UID;

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
    trim: fn(&mut K),
    /// Watches that keep this cache: one, or one for each namespace.
    watches: AtomicUsize,
    /// How many of them have completed their first list.
    complete: AtomicUsize,
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
    /// An empty cache whose objects are also found by `index`, and kept without what `trim` drops.
    pub fn new(index: fn(&K) -> Option<String>, trim: fn(&mut K)) -> Self {
        let state = State { objects: HashMap::new(), by_uid: HashMap::new(), gone: HashMap::new() };
        Self {
            state: RwLock::new(state),
            index,
            trim,
            watches: AtomicUsize::new(1),
            complete: AtomicUsize::new(0),
        }
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

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.objects.values().cloned().collect()
    }

    /// Says how many watches will keep this cache.
    pub fn expect(&self, watches: usize) {
        self.watches.store(watches, Ordering::Release);
    }

    /// Whether all first lists are complete.
    pub fn ready(&self) -> bool {
        self.complete.load(Ordering::Acquire) >= self.watches.load(Ordering::Acquire)
    }

    /// How many objects `wanted` takes.
    pub fn count(&self, wanted: impl Fn(&K) -> bool) -> usize {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.objects.values().filter(|object| wanted(object)).count()
    }

    /// Takes `object` in, unless something newer is known; says what changed.
    pub fn put(&self, object: K) -> Option<Change> {
        self.replace(object).map(|(change, _)| change)
    }

    /// Like [`Cache::put`]; also gives what was known before.
    fn replace(&self, mut object: K) -> Option<(Change, Option<Arc<K>>)> {
        (self.trim)(&mut object);
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
        Some((change, old))
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

/// What a watch says, whether its objects are readable or not.
#[derive(Debug)]
pub enum News<K> {
    /// A list begins.
    Begin,
    /// An object of the list.
    Listed(K),
    /// The list is complete.
    End,
    /// An object is new or other than before.
    Put(K),
    /// The object with this key went with this version.
    Gone(Key, u64),
    /// The object with this key cannot be read; what was known of it goes on to hold.
    Unreadable(Key, String),
}

/// The news in an event of a kind that the API server itself defines.
pub fn plain<K: Resource>(event: Event<K>) -> News<K> {
    match event {
        Event::Init => News::Begin,
        Event::InitApply(object) => News::Listed(object),
        Event::InitDone => News::End,
        Event::Apply(object) => News::Put(object),
        Event::Delete(object) => News::Gone(key(&object), version(&object)),
    }
}

/// The news in an event of a kind whose objects may be of another version of Lithe: one object
/// that cannot be read must not stop the others.
pub fn guarded<K: Resource<DynamicType = ()>>(event: Event<DeserializeGuard<K>>) -> News<K> {
    match event {
        Event::Init => News::Begin,
        Event::InitDone => News::End,
        Event::Delete(object) => News::Gone(key(&object), version(&object)),
        Event::InitApply(DeserializeGuard(Ok(object))) => News::Listed(object),
        Event::Apply(DeserializeGuard(Ok(object))) => News::Put(object),
        Event::InitApply(DeserializeGuard(Err(invalid)))
        | Event::Apply(DeserializeGuard(Err(invalid))) => {
            let meta = invalid.metadata;
            let key = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
            News::Unreadable(key, invalid.error)
        }
    }
}

/// Keeps the part of `cache` in `namespace` (all of it without one) as `events` tell until they
/// end; `tell` hears of every change, and `unreadable` of every object that could not be read.
pub async fn follow<K: Resource<DynamicType = ()> + Clone>(
    events: impl Stream<Item = Result<News<K>, watcher::Error>>,
    cache: &Cache<K>,
    namespace: Option<&str>,
    tell: impl Fn(&K, Change),
    unreadable: impl Fn(&Key, &str),
) {
    let mut events = std::pin::pin!(events);
    let mut listed: HashSet<Key> = HashSet::new();
    let mut first = true;
    loop {
        match events.try_next().await {
            Ok(Some(News::Begin)) => listed.clear(),
            Ok(Some(News::Listed(object))) => {
                listed.insert(key(&object));
                cache.take_in(object, &tell);
            }
            Ok(Some(News::End)) => {
                let here = |key: &Key| namespace.is_none_or(|namespace| key.0 == namespace);
                let missing = |key: &Key| here(key) && !listed.contains(key);
                for missing in cache.keys().into_iter().filter(missing) {
                    let version = cache.get(&missing).map_or(0, |old| version(old.as_ref()));
                    cache.drop_out(&missing, version, &tell);
                }
                listed.clear();
                cache.complete.fetch_add(usize::from(first), Ordering::AcqRel);
                first = false;
            }
            Ok(Some(News::Put(object))) => cache.take_in(object, &tell),
            Ok(Some(News::Gone(key, version))) => cache.drop_out(&key, version, &tell),
            Ok(Some(News::Unreadable(key, why))) => {
                listed.insert(key.clone());
                unreadable(&key, &why);
            }
            Ok(None) => return,
            // The stream backs off and lists anew by itself.
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch"),
        }
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Cache<K> {
    fn take_in(&self, object: K, tell: &impl Fn(&K, Change)) {
        let place = key(&object);
        let Some((change, old)) = self.replace(object) else { return };
        let Some(new) = self.get(&place) else { return };
        // Somebody gave the child to another owner: for its own it is gone.
        if let Some(old) = old
            && (self.index)(&old) != (self.index)(&new)
        {
            tell(&old, Change::Deleted);
        }
        tell(&new, change);
    }

    fn drop_out(&self, key: &Key, version: u64, tell: &impl Fn(&K, Change)) {
        if let Some(old) = self.remove(key, version) {
            tell(&old, Change::Deleted);
        }
    }
}

/// Drops what nobody here reads and what would fill the memory.
pub fn light<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceAccount;
    use kube::ResourceExt as _;

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
        let cache = Cache::new(owner_uid, light);
        assert_eq!(cache.put(object("a", "u", 9)), Some(Change::New));
        assert_eq!(cache.put(object("a", "u", 7)), None);
        assert_eq!(cache.put(object("a", "u", 11)), Some(Change::Spec));
    }

    #[test]
    fn a_late_answer_does_not_bring_back_what_was_deleted() {
        let cache = Cache::new(owner_uid, light);
        cache.put(object("a", "u", 9));
        assert!(cache.remove(&("ns".into(), "a".into()), 12).is_some());
        assert_eq!(cache.put(object("a", "u", 10)), None);
        assert_eq!(cache.put(object("a", "u", 13)), Some(Change::New));
    }

    #[test]
    fn objects_are_found_by_the_uid_of_their_owner() {
        let cache = Cache::new(owner_uid, light);
        cache.put(object("a", "u", 1));
        cache.put(object("b", "v", 2));
        cache.put(object("a", "v", 3));
        let names: Vec<_> = cache.of("v").iter().map(|object| object.name_any()).collect();
        assert_eq!((names, cache.of("u").len()), (vec!["a".to_owned(), "b".to_owned()], 0));
    }

    async fn told(cache: &Cache<ServiceAccount>, news: Vec<News<ServiceAccount>>) -> Vec<String> {
        let heard = std::sync::Mutex::new(Vec::new());
        let say = |words: String| heard.lock().unwrap().push(words);
        let events = futures::stream::iter(news.into_iter().map(Ok));
        let tell = |object: &ServiceAccount, change| {
            say(format!("{} {} {change:?}", object.name_any(), owner_uid(object).unwrap()));
        };
        follow(events, cache, Some("ns"), tell, |key, why| say(format!("{} {why}", key.1))).await;
        heard.into_inner().unwrap()
    }

    #[tokio::test]
    async fn a_new_list_says_what_went_meanwhile() {
        let cache = Cache::new(owner_uid, light);
        cache.put(object("a", "u", 1));
        cache.put(object("b", "u", 2));
        let mut elsewhere = object("c", "u", 3);
        elsewhere.metadata.namespace = Some("other".into());
        cache.put(elsewhere);
        let news = vec![News::Begin, News::Listed(object("b", "u", 2)), News::End];
        assert_eq!(told(&cache, news).await, ["a u Deleted"]);
        assert!(cache.ready());
    }

    #[tokio::test]
    async fn a_child_given_to_another_is_gone_for_its_owner() {
        let cache = Cache::new(owner_uid, light);
        cache.put(object("a", "u", 1));
        let news = vec![News::Put(object("a", "v", 2))];
        assert_eq!(told(&cache, news).await, ["a u Deleted", "a v Spec"]);
    }

    #[tokio::test]
    async fn an_unreadable_object_stops_nobody_and_what_was_known_of_it_holds() {
        let cache = Cache::new(owner_uid, light);
        cache.put(object("a", "u", 1));
        let key = ("ns".to_owned(), "a".to_owned());
        let news = vec![
            News::Begin,
            News::Unreadable(key.clone(), "bad".into()),
            News::Listed(object("b", "u", 3)),
            News::End,
        ];
        assert_eq!(told(&cache, news).await, ["a bad", "b u New"]);
        assert!(cache.get(&key).is_some());
    }
}
