//! The work queue: keys wait without duplicates, urgent ones first, none twice at a time.
//!
//! A child that was deleted must come back at once even while hundreds of new objects wait, which
//! a queue by time alone cannot do. Time is an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The first pause after an error, doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The longest pause after an error.
const LAST_BACKOFF: Duration = Duration::from_secs(60);

/// How soon a key is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Something was changed under us, or by the user.
    Urgent,
    /// Something new.
    Normal,
    /// A second look, to tell what became of what we did: making comes before telling.
    Look,
}

/// How the work on a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Well: earlier failures are forgotten.
    Well,
    /// Badly: it is tried again, not before the time that the server asked for, if it did.
    Badly(Option<Duration>),
}

/// How many keys wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Urgent ones.
    pub urgent: usize,
    /// Others that could be worked on now, new ones and second looks.
    pub normal: usize,
    /// Those that wait for a time.
    pub later: usize,
}

#[derive(Debug)]
struct State<K> {
    urgent: VecDeque<K>,
    normal: VecDeque<K>,
    looks: VecDeque<K>,
    waiting: HashMap<K, Priority>,
    running: HashMap<K, Priority>,
    /// Wanted while running: goes back into its line afterwards.
    again: HashMap<K, Priority>,
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    serial: u64,
}

/// A queue of keys, read by one dispatcher.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    news: Notify,
    /// Keys that may be worked on at a time.
    capacity: usize,
    /// How many of those are kept for urgent keys.
    reserved: usize,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty queue; at most `capacity` keys are out at a time, `reserved` of them urgent ones.
    pub fn new(capacity: usize, reserved: usize) -> Self {
        let state = State {
            urgent: VecDeque::new(),
            normal: VecDeque::new(),
            looks: VecDeque::new(),
            waiting: HashMap::new(),
            running: HashMap::new(),
            again: HashMap::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            serial: 0,
        };
        let capacity = capacity.max(1);
        let reserved = reserved.min(capacity - 1);
        Self { state: Mutex::new(state), news: Notify::new(), capacity, reserved }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants `key` now.
    pub fn push(&self, key: K, priority: Priority) {
        self.state().push(key, priority);
        self.news.notify_one();
    }

    /// Wants `key` at `when`, unless it is wanted sooner.
    pub fn push_at(&self, key: K, when: Instant) {
        self.state().push_at(key, when);
        self.news.notify_one();
    }

    /// Ends the work on `key`; after an error it comes back with growing pauses.
    pub fn done(&self, key: &K, end: End, now: Instant) {
        let mut state = self.state();
        state.running.remove(key);
        if let Some(priority) = state.again.remove(key) {
            state.push(key.clone(), priority);
        }
        match end {
            End::Well => {
                state.failures.remove(key);
            }
            End::Badly(asked) => {
                let count = state.failures.entry(key.clone()).or_insert(0);
                *count = count.saturating_add(1);
                let pause = pause(key, *count).max(asked.unwrap_or_default());
                state.push_at(key.clone(), now + pause);
            }
        }
        drop(state);
        self.news.notify_one();
    }

    /// How many keys wait.
    pub fn depth(&self) -> Depth {
        let state = self.state();
        let urgent = state.waiting.values().filter(|wanted| **wanted == Priority::Urgent).count();
        Depth { urgent, normal: state.waiting.len() - urgent, later: state.later.len() }
    }

    /// The next key that may be worked on at `now`, or when to look again.
    fn take(&self, now: Instant) -> Result<K, Option<Instant>> {
        let mut state = self.state();
        while let Some((slot, key)) = state.later.first_key_value().map(|(s, k)| (*s, k.clone())) {
            if now < slot.0 {
                break;
            }
            state.later.remove(&slot);
            state.due.remove(&key);
            state.push(key, Priority::Look);
        }
        let normal = state.running.values().filter(|taken| **taken != Priority::Urgent).count();
        let room = state.running.len() < self.capacity;
        if room && let Some(key) = state.pop(normal < self.capacity - self.reserved) {
            return Ok(key);
        }
        Err(state.later.first_key_value().map(|(slot, _)| slot.0))
    }

    /// Waits for the next key. Whoever takes it must call [`Queue::done`].
    pub async fn next(&self) -> K {
        loop {
            match self.take(Instant::now()) {
                Ok(key) => return key,
                Err(None) => self.news.notified().await,
                Err(Some(when)) => {
                    let _ = tokio::time::timeout_at(when.into(), self.news.notified()).await;
                }
            }
        }
    }
}

/// The pause after failure number `count`: up to a quarter shorter for some keys than for others,
/// so that what failed together is not tried again together.
fn pause<K: Hash>(key: &K, count: u32) -> Duration {
    let factor = 1_u32 << (count.saturating_sub(1)).min(10);
    let whole = FIRST_BACKOFF.saturating_mul(factor).min(LAST_BACKOFF);
    let spread = BuildHasherDefault::<DefaultHasher>::default().hash_one((key, count)) % 256;
    whole - whole / 4 * u32::try_from(spread).unwrap_or(0) / 256
}

impl<K: Clone + Eq + Hash> State<K> {
    fn push(&mut self, key: K, priority: Priority) {
        if self.running.contains_key(&key) {
            let wanted = self.again.entry(key).or_insert(priority);
            *wanted = priority.min(*wanted);
            return;
        }
        match self.waiting.get(&key) {
            Some(old) if *old <= priority => return,
            _ => self.waiting.insert(key.clone(), priority),
        };
        match priority {
            Priority::Urgent => self.urgent.push_back(key),
            Priority::Normal => self.normal.push_back(key),
            Priority::Look => self.looks.push_back(key),
        }
    }

    fn push_at(&mut self, key: K, when: Instant) {
        if self.due.get(&key).is_some_and(|(due, _)| *due <= when) {
            return;
        }
        if let Some(old) = self.due.remove(&key) {
            self.later.remove(&old);
        }
        self.serial += 1;
        let slot = (when, self.serial);
        self.due.insert(key.clone(), slot);
        self.later.insert(slot, key);
    }

    fn pop(&mut self, normal_too: bool) -> Option<K> {
        loop {
            let key = match self.urgent.pop_front() {
                Some(key) => key,
                None if !normal_too => return None,
                None => self.normal.pop_front().or_else(|| self.looks.pop_front())?,
            };
            // A key that was raised stands in two lines; the second time it is gone.
            if let Some(priority) = self.waiting.remove(&key) {
                self.running.insert(key.clone(), priority);
                return Some(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_keys_overtake_and_nothing_stands_twice() {
        let (queue, now) = (Queue::new(9, 0), Instant::now());
        for key in ["a", "b", "a"] {
            queue.push(key, Priority::Normal);
        }
        queue.push("b", Priority::Urgent);
        assert_eq!(queue.depth(), Depth { urgent: 1, normal: 1, later: 0 });
        assert_eq!([queue.take(now), queue.take(now)], [Ok("b"), Ok("a")]);
        assert_eq!(queue.take(now), Err(None));
    }

    #[test]
    fn a_key_is_never_worked_on_twice_at_a_time() {
        let (queue, now) = (Queue::new(9, 0), Instant::now());
        queue.push("a", Priority::Normal);
        assert_eq!(queue.take(now), Ok("a"));
        queue.push("a", Priority::Urgent);
        assert_eq!(queue.take(now), Err(None));
        queue.done(&"a", End::Well, now);
        assert_eq!(queue.take(now), Ok("a"));
    }

    #[test]
    fn a_repair_finds_room_while_new_objects_fill_the_rest() {
        let (queue, now) = (Queue::new(3, 1), Instant::now());
        for key in ["new 1", "new 2", "new 3"] {
            queue.push(key, Priority::Normal);
        }
        assert_eq!([queue.take(now), queue.take(now)], [Ok("new 1"), Ok("new 2")]);
        assert_eq!(queue.take(now), Err(None));
        queue.push("broken", Priority::Urgent);
        assert_eq!(queue.take(now), Ok("broken"));
        queue.done(&"new 1", End::Well, now);
        assert_eq!(queue.take(now), Ok("new 3"));
    }

    #[test]
    fn a_second_look_waits_for_what_is_new() {
        let (queue, now) = (Queue::new(9, 0), Instant::now());
        queue.push_at("made", now);
        queue.push("new", Priority::Normal);
        assert_eq!([queue.take(now), queue.take(now)], [Ok("new"), Ok("made")]);
        assert_eq!(queue.take(now), Err(None));
    }

    #[test]
    fn pauses_after_errors_double_and_end_with_success() {
        let (queue, mut now) = (Queue::new(9, 0), Instant::now());
        let mut fail = |end| {
            queue.push("a", Priority::Urgent);
            assert_eq!(queue.take(now), Ok("a"));
            queue.done(&"a", end, now);
            let Err(Some(due)) = queue.take(now) else { return Duration::ZERO };
            let pause = due - now;
            now = due;
            assert_eq!(queue.take(now), Ok("a"));
            queue.state().running.clear();
            pause
        };
        for whole in [500, 1000, 2000] {
            let pause = fail(End::Badly(None)).as_millis();
            assert!((whole * 3 / 4..=whole).contains(&pause), "{pause} for {whole}");
        }
        assert_eq!(fail(End::Badly(Some(Duration::from_secs(30)))), Duration::from_secs(30));
        assert_eq!(fail(End::Well), Duration::ZERO);
        assert!(fail(End::Badly(None)) <= FIRST_BACKOFF);
    }

    #[test]
    fn the_sooner_of_two_times_holds() {
        let (queue, now) = (Queue::new(9, 0), Instant::now());
        queue.push_at("a", now + Duration::from_secs(9));
        queue.push_at("a", now + Duration::from_secs(3));
        queue.push_at("a", now + Duration::from_secs(5));
        assert_eq!(queue.take(now), Err(Some(now + Duration::from_secs(3))));
    }
}
