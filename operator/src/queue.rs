//! The work queue: keys wait without duplicates, urgent ones first, none twice at a time.
//!
//! A child that was deleted must come back at once even while hundreds of new objects wait, which
//! a queue by time alone cannot do. Time is an argument.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
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
    /// Something new, or news of what we did ourselves.
    Normal,
}

#[derive(Debug)]
struct State<K> {
    urgent: VecDeque<K>,
    normal: VecDeque<K>,
    waiting: HashMap<K, Priority>,
    running: HashSet<K>,
    /// Wanted while running: goes back into its line afterwards.
    again: HashMap<K, Priority>,
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    serial: u64,
}

/// A queue of keys.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    news: Notify,
    /// Workers that take urgent keys only.
    reserved: usize,
}

impl<K: Clone + Eq + std::hash::Hash> Queue<K> {
    /// An empty queue whose first `reserved` workers take urgent keys only.
    pub fn new(reserved: usize) -> Self {
        let state = State {
            urgent: VecDeque::new(),
            normal: VecDeque::new(),
            waiting: HashMap::new(),
            running: HashSet::new(),
            again: HashMap::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            serial: 0,
        };
        Self { state: Mutex::new(state), news: Notify::new(), reserved }
    }

    /// Wants `key` now.
    pub fn push(&self, key: K, priority: Priority) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).push(key, priority);
        self.news.notify_waiters();
    }

    /// Wants `key` at `when`, unless it is wanted sooner.
    pub fn push_at(&self, key: K, when: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.due.get(&key).is_some_and(|(due, _)| *due <= when) {
            return;
        }
        if let Some(old) = state.due.remove(&key) {
            state.later.remove(&old);
        }
        state.serial += 1;
        let slot = (when, state.serial);
        state.due.insert(key.clone(), slot);
        state.later.insert(slot, key);
        drop(state);
        self.news.notify_waiters();
    }

    /// Ends the work on `key`; after an error it comes back with growing pauses.
    pub fn done(&self, key: &K, failed: bool, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.remove(key);
        if let Some(priority) = state.again.remove(key) {
            state.push(key.clone(), priority);
        }
        let retry = if failed {
            let count = state.failures.entry(key.clone()).or_insert(0);
            *count = count.saturating_add(1);
            let factor = 1_u32 << (*count - 1).min(10);
            Some(now + FIRST_BACKOFF.saturating_mul(factor).min(LAST_BACKOFF))
        } else {
            state.failures.remove(key);
            None
        };
        drop(state);
        match retry {
            Some(when) => self.push_at(key.clone(), when),
            None => self.news.notify_waiters(),
        }
    }

    /// Keys that wait now.
    pub fn len(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key for worker number `worker`, or when to look again.
    fn take(&self, worker: usize, now: Instant) -> Result<K, Option<Instant>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((slot, key)) = state.later.first_key_value().map(|(s, k)| (*s, k.clone())) {
            if now < slot.0 {
                break;
            }
            state.later.remove(&slot);
            state.due.remove(&key);
            state.push(key, Priority::Normal);
        }
        if let Some(key) = state.pop(worker < self.reserved) {
            return Ok(key);
        }
        Err(state.later.first_key_value().map(|(slot, _)| slot.0))
    }

    /// Waits for the next key for worker number `worker`.
    pub async fn next(&self, worker: usize) -> K {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // Registered before looking, so that no push between look and wait is missed.
            news.as_mut().enable();
            match self.take(worker, Instant::now()) {
                Ok(key) => return key,
                Err(None) => news.await,
                Err(Some(when)) => {
                    let _ = tokio::time::timeout_at(when.into(), news).await;
                }
            }
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash> State<K> {
    fn push(&mut self, key: K, priority: Priority) {
        if self.running.contains(&key) {
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
        }
    }

    fn pop(&mut self, urgent_only: bool) -> Option<K> {
        loop {
            let key = match self.urgent.pop_front() {
                Some(key) => key,
                None if urgent_only => return None,
                None => self.normal.pop_front()?,
            };
            // A key that was raised to urgent stands in both lines; the second time it is gone.
            if self.waiting.remove(&key).is_some() {
                self.running.insert(key.clone());
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
        let (queue, now) = (Queue::new(0), Instant::now());
        for key in ["a", "b", "a"] {
            queue.push(key, Priority::Normal);
        }
        queue.push("b", Priority::Urgent);
        assert_eq!(queue.len(), 2);
        assert_eq!([queue.take(0, now), queue.take(0, now)], [Ok("b"), Ok("a")]);
        assert_eq!(queue.take(0, now), Err(None));
    }

    #[test]
    fn a_key_is_never_worked_on_twice_at_a_time() {
        let (queue, now) = (Queue::new(0), Instant::now());
        queue.push("a", Priority::Normal);
        assert_eq!(queue.take(0, now), Ok("a"));
        queue.push("a", Priority::Urgent);
        assert_eq!(queue.take(0, now), Err(None));
        queue.done(&"a", false, now);
        assert_eq!(queue.take(0, now), Ok("a"));
    }

    #[test]
    fn reserved_workers_leave_normal_keys_alone() {
        let (queue, now) = (Queue::new(1), Instant::now());
        queue.push("new", Priority::Normal);
        assert_eq!(queue.take(0, now), Err(None));
        assert_eq!(queue.take(1, now), Ok("new"));
    }

    #[test]
    fn pauses_after_errors_double_and_end_with_success() {
        let (queue, mut now) = (Queue::new(0), Instant::now());
        for pause in [500, 1000, 2000] {
            queue.push("a", Priority::Urgent);
            assert_eq!(queue.take(0, now), Ok("a"));
            queue.done(&"a", true, now);
            let due = now + Duration::from_millis(pause);
            assert_eq!(queue.take(0, now), Err(Some(due)));
            now = due;
            assert_eq!(queue.take(0, now), Ok("a"));
            queue.done(&"a", false, now);
            // Success forgets; fail again as often as before plus one.
            for _ in 0..(pause / 500).ilog2() + 1 {
                queue.push("a", Priority::Urgent);
                assert_eq!(queue.take(0, now), Ok("a"));
                queue.done(&"a", true, now);
                now += LAST_BACKOFF;
                assert_eq!(queue.take(0, now), Ok("a"));
                queue.state.lock().unwrap().running.clear();
            }
        }
    }

    #[test]
    fn the_sooner_of_two_times_holds() {
        let (queue, now) = (Queue::new(0), Instant::now());
        queue.push_at("a", now + Duration::from_secs(9));
        queue.push_at("a", now + Duration::from_secs(3));
        queue.push_at("a", now + Duration::from_secs(5));
        assert_eq!(queue.take(0, now), Err(Some(now + Duration::from_secs(3))));
    }
}
