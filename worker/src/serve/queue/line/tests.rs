//! The line by itself: every decision at a told time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use super::*;
use crate::serve::queue::{Batching, OnTimeout};

const MS: Duration = Duration::from_millis(1);

fn work(shape: &[usize], priority: u64) -> Work {
    let count = shape.iter().product();
    let tensor = Tensor::from_f32(shape.to_vec(), &vec![0.0; count]).unwrap();
    Work { inputs: vec![("x".into(), tensor)], wanted: vec![], deadline: None, priority }
}

fn rows(rows: usize) -> Work {
    work(&[rows, 1], 0)
}

/// A line of a model that takes 10 ms and 1 ms a row, with the time as milliseconds.
struct Told {
    line: Line,
    start: Instant,
    replies: Vec<oneshot::Receiver<Result<Vec<Tensor>, InferError>>>,
    gone: Vec<(Reply, InferError)>,
}

impl Told {
    fn new(policy: Policy) -> Self {
        let limits = Limits { requests: 4, bytes: 1000 };
        let curve = Curve::measured(&[(1, 11 * MS), (11, 21 * MS)]);
        let (replies, gone) = (Vec::new(), Vec::new());
        Self { line: Line::new(policy, limits, curve), start: Instant::now(), replies, gone }
    }

    fn batching(max: usize, delay: Option<u32>, preferred: &[usize]) -> Policy {
        let delay = delay.map(|delay| delay * MS);
        let batching = Some(Batching { max, delay, preferred: preferred.to_vec() });
        Policy { batching, ..Policy::default() }
    }

    fn admit(&mut self, at: u32, work: Work) -> Result<u64, InferError> {
        let (reply, answer) = oneshot::channel();
        self.replies.push(answer);
        self.line.admit(work, reply, self.start + at * MS, &mut self.gone)
    }

    /// The ids that run at `at`; until when it waits; or nothing.
    fn next(&mut self, at: u32) -> Result<Vec<u64>, Option<u128>> {
        match self.line.next(self.start + at * MS, &mut self.gone) {
            Turn::Run(batch) => Ok(batch.iter().map(|waiting| waiting.id).collect()),
            Turn::Wait(until) => Err(Some((until - self.start).as_millis())),
            Turn::Idle => Err(None),
        }
    }

    fn finish(&mut self) {
        self.line.finish(1, None);
    }

    fn deadline(&self, at: u32, work: Work) -> Work {
        Work { deadline: Some(self.start + at * MS), ..work }
    }
}

#[test]
fn without_batching_each_runs_alone_in_order() {
    let mut told = Told::new(Policy::default());
    let (a, b) = (told.admit(0, rows(1)).unwrap(), told.admit(0, rows(1)).unwrap());
    assert_eq!(told.next(0), Ok(vec![a]));
    assert_eq!(told.next(0), Err(None), "two inferences at once");
    told.finish();
    assert_eq!(told.next(0), Ok(vec![b]));
    told.finish();
    assert_eq!((told.next(0), told.line.len()), (Err(None), 0));
}

#[test]
fn requests_that_wait_together_run_together() {
    let mut told = Told::new(Told::batching(4, Some(0), &[]));
    let ids: Vec<_> = [1, 2, 2].map(|size| told.admit(0, rows(size)).unwrap()).into();
    assert_eq!(told.next(0), Ok(ids[..2].to_vec()), "more than the most rows");
    told.finish();
    assert_eq!(told.next(0), Ok(ids[2..].to_vec()));
}

#[test]
fn who_cannot_join_runs_alone() {
    let mut told = Told::new(Told::batching(4, Some(100), &[]));
    let wide = told.admit(0, work(&[1, 2], 0)).unwrap();
    let narrow = told.admit(0, rows(1)).unwrap();
    let large = told.admit(0, rows(9)).unwrap();
    let scalar = told.admit(0, work(&[], 0)).unwrap();
    for id in [wide, narrow, large, scalar] {
        assert_eq!(told.next(0), Ok(vec![id]));
        told.finish();
    }
}

#[test]
fn a_declared_delay_is_waited_for_and_no_longer() {
    let mut told = Told::new(Told::batching(4, Some(5), &[]));
    let first = told.admit(0, rows(1)).unwrap();
    assert_eq!(told.next(1), Err(Some(5)));
    let second = told.admit(3, rows(1)).unwrap();
    assert_eq!(told.next(3), Err(Some(5)), "the oldest counts");
    assert_eq!(told.next(5), Ok(vec![first, second]));
    told.finish();
    let full: Vec<_> = (0..2).map(|_| told.admit(9, rows(2)).unwrap()).collect();
    assert_eq!(told.next(9), Ok(full), "a full batch waited");
}

#[test]
fn a_preferred_size_runs_at_once() {
    let mut told = Told::new(Told::batching(8, Some(5), &[2]));
    let ids: Vec<_> = (0..3).map(|_| told.admit(0, rows(1)).unwrap()).collect();
    assert_eq!(told.next(0), Ok(ids[..2].to_vec()));
    told.finish();
    assert_eq!(told.next(0), Err(Some(5)));
}

#[test]
fn a_deadline_ends_the_wait_for_company() {
    let mut told = Told::new(Told::batching(8, Some(500), &[]));
    let hurried = told.deadline(31, rows(1));
    let id = told.admit(0, hurried).unwrap();
    // It takes 11 ms.
    assert_eq!(told.next(0), Err(Some(20)));
    assert_eq!(told.next(20), Ok(vec![id]));
}

#[test]
fn alone_nobody_waits_and_expected_company_is_waited_for_once() {
    let mut told = Told::new(Told::batching(8, None, &[]));
    let id = told.admit(0, rows(1)).unwrap();
    assert_eq!(told.next(0), Ok(vec![id]));
    // Two more came while it ran: three are in the system.
    let pair: Vec<_> = (0..2).map(|_| told.admit(5, rows(1)).unwrap()).collect();
    told.finish();
    // Half of the 10 ms that an inference takes whatever its size.
    assert_eq!(told.next(5), Err(Some(10)));
    assert_eq!(told.next(10), Ok(pair));
    told.finish();
    // The third did not come: it is not waited for again.
    let pair: Vec<_> = (0..2).map(|_| told.admit(20, rows(1)).unwrap()).collect();
    assert_eq!(told.next(20), Ok(pair));
}

#[test]
fn a_short_target_leaves_no_time_for_company() {
    let policy = Policy { target: Some(20 * MS), ..Told::batching(8, None, &[]) };
    let mut told = Told::new(policy);
    told.line.finish(4, None);
    let id = told.admit(0, rows(1)).unwrap();
    // 18 ms for a full batch: a quarter of the 2 ms that are left.
    let Err(Some(_)) = told.next(0) else { panic!("no wait at all") };
    assert_eq!(told.next(1), Ok(vec![id]));
}

#[test]
fn a_full_line_refuses_the_least_urgent() {
    let mut told = Told::new(Policy { levels: 3, ..Policy::default() });
    let last: Vec<_> = (0..2).map(|_| told.admit(0, work(&[1], 3)).unwrap()).collect();
    let middle: Vec<_> = [0, 99].map(|level| told.admit(0, work(&[1], level)).unwrap()).into();
    let refused = told.admit(0, work(&[1], 3)).unwrap_err();
    assert!(
        matches!(&refused, InferError::Overloaded { retry, .. } if *retry >= 40 * MS),
        "{refused:?}"
    );
    // The urgent one takes the place of the youngest of the last.
    let urgent = told.admit(0, work(&[1], 1)).unwrap();
    assert_eq!(told.gone.len(), 1);
    for id in [urgent, middle[0], middle[1], last[0]] {
        assert_eq!(told.next(0), Ok(vec![id]));
        told.finish();
    }
    assert_eq!(told.next(0), Err(None));
}

#[test]
fn bytes_are_bounded_but_one_request_always_fits() {
    let mut told = Told::new(Policy::default());
    assert!(told.admit(0, rows(10_000)).is_ok(), "alone");
    assert!(told.admit(0, rows(1)).unwrap_err().to_string().contains("40000 bytes wait"));
}

#[test]
fn what_would_be_late_is_refused_at_once() {
    let mut told = Told::new(Policy::default());
    // The first always runs: its 11 ms are an estimate.
    let first = told.deadline(5, rows(1));
    let first = told.admit(0, first).unwrap();
    assert_eq!(told.next(0), Ok(vec![first]));
    let late = told.deadline(21, rows(1));
    let refused = told.admit(0, late).unwrap_err();
    assert!(matches!(refused, InferError::Overloaded { .. }), "{refused:?}");
    let in_time = told.deadline(23, rows(1));
    assert!(told.admit(0, in_time).is_ok());
}

#[test]
fn a_target_counts_twice_as_a_deadline() {
    let mut told = Told::new(Policy { target: Some(20 * MS), ..Policy::default() });
    for _ in 0..3 {
        told.admit(0, rows(1)).unwrap();
    }
    assert!(told.admit(0, rows(1)).is_err(), "44 ms are more than twice 20 ms");
}

#[test]
fn what_became_late_runs_no_kernel() {
    let mut told = Told::new(Policy::default());
    let first = told.admit(0, rows(1)).unwrap();
    let second = told.deadline(30, rows(1));
    told.admit(0, second).unwrap();
    let third = told.admit(0, rows(1)).unwrap();
    assert_eq!(told.next(0), Ok(vec![first]));
    told.finish();
    // At 25 ms the second could be ready at 36 ms only, and the third waits.
    assert_eq!(told.next(25), Ok(vec![third]));
    assert!(matches!(told.gone[..], [(_, InferError::Overloaded { .. })]), "{:?}", told.gone);
    told.finish();
    let expired = told.deadline(50, rows(1));
    told.admit(40, expired).unwrap();
    assert_eq!(told.next(50), Err(None));
    assert!(matches!(told.gone[1..], [(_, InferError::Deadline(_))]), "{:?}", told.gone);
}

#[test]
fn the_last_one_that_may_still_be_in_time_is_tried() {
    let mut told = Told::new(Policy::default());
    let hurried = told.deadline(5, rows(1));
    let id = told.admit(0, hurried).unwrap();
    assert_eq!(told.next(2), Ok(vec![id]), "a curve that is too slow would never be corrected");
}

#[test]
fn a_timeout_rejects_or_delays() {
    let policy = |on_timeout| Policy { timeout: Some(5 * MS), on_timeout, ..Policy::default() };
    let mut told = Told::new(policy(OnTimeout::Reject));
    told.admit(0, rows(1)).unwrap();
    assert_eq!(told.next(5), Err(None));
    assert_eq!(told.gone.len(), 1);
    let mut told = Told::new(policy(OnTimeout::Delay));
    let (old, young) = (told.admit(0, rows(1)).unwrap(), told.admit(3, rows(1)).unwrap());
    assert_eq!(told.next(5), Ok(vec![young]));
    told.finish();
    assert_eq!((told.next(100), told.gone.len()), (Ok(vec![old]), 0));
}

#[test]
fn a_cancelled_request_frees_its_place() {
    let mut told = Told::new(Policy::default());
    let ids: Vec<_> = (0..4).map(|_| told.admit(0, rows(1)).unwrap()).collect();
    assert!(told.admit(0, rows(1)).is_err());
    told.line.cancel(ids[1]);
    told.line.cancel(ids[1]);
    assert!(told.admit(0, rows(1)).is_ok());
    assert_eq!(told.line.oldest(), Some(told.start));
}

#[test]
fn short_inferences_run_where_they_came_when_nothing_else_is_there() {
    let quick = Curve::measured(&[(1, MS / 10)]);
    let limits = Limits { requests: 4, bytes: 1000 };
    let mut line = Line::new(Policy::default(), limits, quick);
    let now = Instant::now();
    assert!(line.begin_inline(&rows(1), now));
    assert!(!line.begin_inline(&rows(1), now), "two inferences at once");
    line.finish(1, None);
    let (reply, _answer) = oneshot::channel();
    line.admit(rows(1), reply, now, &mut Vec::new()).unwrap();
    assert!(!line.begin_inline(&rows(1), now), "it overtook the line");
    let mut slow = Told::new(Policy::default()).line;
    assert!(!slow.begin_inline(&rows(1), now), "11 ms");
    let mut unknown = Line::new(Policy::default(), limits, Curve::default());
    assert!(!unknown.begin_inline(&rows(1), now), "nothing is known");
}
