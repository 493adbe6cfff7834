//! The queue of requests that wait for a worker: bounded in requests and bytes, first come first
//! served, left by who gives up. It knows neither workers nor deadlines.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests.
    pub requests: usize,
    /// Bytes of them.
    pub bytes: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    bytes: u64,
    since: Instant,
    wake: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    bytes: u64,
    next: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Hold {
    bounds: Bounds,
    state: Mutex<State>,
    /// As many as `state.waiting`, read without the lock on every request.
    length: AtomicUsize,
    /// Called and not yet at a worker.
    called: AtomicUsize,
}

/// A place in the queue; dropping it leaves.
#[derive(Debug)]
pub struct Ticket {
    hold: Arc<Hold>,
    number: u64,
    woken: oneshot::Receiver<()>,
    called: bool,
}

impl Hold {
    /// An empty queue.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: Mutex::default(),
            length: AtomicUsize::new(0),
            called: AtomicUsize::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    /// How many were called and are on their way.
    pub fn called(&self) -> usize {
        self.called.load(Ordering::Acquire)
    }

    /// Since when the oldest waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.state().waiting.front().map(|waiting| waiting.since)
    }

    /// Takes a place for a request of `bytes`; the second is whether it is the only one. Nothing
    /// when the queue is full.
    pub fn enter(self: &Arc<Self>, bytes: u64, now: Instant) -> Option<(Ticket, bool)> {
        let mut state = self.state();
        let bytes_then = state.bytes.saturating_add(bytes);
        if state.waiting.len() >= self.bounds.requests || bytes_then > self.bounds.bytes {
            return None;
        }
        let (wake, woken) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.bytes = bytes_then;
        state.waiting.push_back(Waiting { number, bytes, since: now, wake });
        self.length.store(state.waiting.len(), Ordering::Release);
        let only = state.waiting.len() == 1;
        Some((Ticket { hold: self.clone(), number, woken, called: false }, only))
    }

    /// Calls the first `room`.
    pub fn call(&self, room: usize) {
        let mut state = self.state();
        for _ in 0..room {
            let Some(first) = state.waiting.pop_front() else { break };
            state.bytes = state.bytes.saturating_sub(first.bytes);
            self.called.fetch_add(1, Ordering::AcqRel);
            if first.wake.send(()).is_err() {
                // It left at this moment and did not see the call.
                self.called.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.length.store(state.waiting.len(), Ordering::Release);
    }
}

impl Ticket {
    /// Waits to be called.
    pub async fn called(&mut self) {
        // Whoever calls is the queue, and it lives as long as the ticket.
        let _ = (&mut self.woken).await;
        self.called = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.hold.state();
        if self.called || self.woken.try_recv().is_ok() {
            self.hold.called.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let place = state.waiting.iter().position(|waiting| waiting.number == self.number);
        if let Some(left) = place.and_then(|place| state.waiting.remove(place)) {
            state.bytes = state.bytes.saturating_sub(left.bytes);
        }
        self.hold.length.store(state.waiting.len(), Ordering::Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hold(requests: usize, bytes: u64) -> Arc<Hold> {
        Arc::new(Hold::new(Bounds { requests, bytes }))
    }

    #[tokio::test]
    async fn the_first_to_come_is_called_first_and_only_as_many_as_there_is_room_for() {
        let (hold, now) = (hold(3, 100), Instant::now());
        let (mut one, first) = hold.enter(1, now).unwrap();
        let (mut two, second) = hold.enter(1, now).unwrap();
        assert!(first && !second);
        hold.call(1);
        one.called().await;
        assert_eq!((hold.len(), hold.called()), (1, 1));
        drop(one);
        assert_eq!(hold.called(), 0);
        hold.call(5);
        two.called().await;
        drop(two);
        assert_eq!((hold.len(), hold.called()), (0, 0));
    }

    #[test]
    fn requests_and_bytes_are_bounded_and_leaving_makes_room() {
        let (hold, now) = (hold(2, 10), Instant::now());
        let (one, _) = hold.enter(6, now).unwrap();
        assert!(hold.enter(5, now).is_none(), "too many bytes");
        let (_two, _) = hold.enter(4, now).unwrap();
        assert!(hold.enter(0, now).is_none(), "too many requests");
        drop(one);
        assert_eq!(hold.len(), 1);
        assert!(hold.enter(6, now).is_some());
    }

    #[test]
    fn who_is_called_and_leaves_unseen_is_not_counted_as_on_its_way() {
        let hold = hold(2, 10);
        let (one, _) = hold.enter(1, Instant::now()).unwrap();
        hold.call(1);
        drop(one);
        assert_eq!((hold.len(), hold.called()), (0, 0));
    }
}
