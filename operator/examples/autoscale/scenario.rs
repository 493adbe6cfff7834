//! One trace on one profile: the oracle, bounds, every peer on its default and with the threshold
//! that would have been best, and Lithe, also where something is not as it should be.

use crate::oracle;
use crate::ours::Lithe;
use crate::peers::{Peer, fixed, peers};
use crate::pods::{Controller, Limits, Odd, Profile, Run};
use crate::score::Score;
use crate::trace::Trace;
use crate::twin::Exact;

/// One trace on one profile.
pub struct Scenario<'a> {
    /// The demand.
    pub trace: &'a Trace,
    /// The pods.
    pub profile: &'a Profile,
    /// Their exact capacity.
    pub exact: &'a Exact,
}

/// What came of it.
pub struct Outcome {
    /// Seconds of pods of the oracle.
    pub oracle: f64,
    /// Each controller's.
    pub rows: Vec<Row>,
}

/// One controller's score.
pub struct Row {
    /// Its name.
    pub controller: String,
    /// How it did.
    pub score: Score,
}

/// The name of ours.
pub const OURS: &str = "lithe";
/// What the name of a peer with the best threshold ends with.
const TUNED: &str = "-tuned";

impl Scenario<'_> {
    /// Runs all controllers.
    pub fn run(&self) -> Outcome {
        let arrivals = self.trace.arrivals();
        let first = oracle::first(self.profile, self.exact, self.trace);
        let clairvoyant = oracle::clairvoyant(self.profile, self.exact, self.trace, &arrivals);
        let seconds = self.trace.counts.len();
        let run = |odd: Odd, controller: &mut dyn Controller| {
            Run::new(self.profile, odd, first).run(&arrivals, seconds, controller)
        };
        let usual = Odd::default();
        let ours = run(usual, &mut Lithe::new(self.profile));
        // A tuned peer may be as late as ours, or 1 %.
        let share = (ours.late as f64 / ours.requests.max(1) as f64).max(oracle::GOAL / 100.0);
        let late = (share * arrivals.len() as f64) as u64;
        let peak = fixed(oracle::peak(self.exact, self.trace), seconds).0;
        let bound = oracle::reactive(self.profile, self.exact, self.trace);
        let mut rows = vec![
            Row { controller: "oracle".into(), score: clairvoyant },
            Row { controller: OURS.into(), score: ours },
            Row { controller: "reactive-bound".into(), score: run(usual, &mut { bound }) },
            Row {
                controller: "static-peak".into(),
                score: run(usual, &mut oracle::Schedule(peak)),
            },
        ];
        for peer in peers(self.profile) {
            let mut default = (peer.make)(self.profile, self.exact, peer.default);
            let score = run(usual, default.as_mut());
            rows.push(Row { controller: peer.name.into(), score });
            let begin = || Run::new(self.profile, usual, first);
            rows.extend(self.tuned(&peer, late, begin, &arrivals));
        }
        rows.extend(self.odd(run));
        let oracle = rows.first().map_or(1.0, |row| row.score.pod_seconds).max(1.0);
        Outcome { oracle, rows }
    }

    /// The cheapest threshold with at most `late` late requests; none when no threshold has.
    fn tuned<'r>(
        &self,
        peer: &Peer,
        late: u64,
        begin: impl Fn() -> Run<'r>,
        arrivals: &[f64],
    ) -> Option<Row> {
        let mut limits = Limits { late, pod_seconds: f64::INFINITY };
        let mut best = None;
        for threshold in peer.grid {
            let mut controller = (peer.make)(self.profile, self.exact, *threshold);
            let seconds = self.trace.counts.len();
            let score = begin().within(limits, arrivals, seconds, controller.as_mut());
            if let Some(score) = score {
                limits.pod_seconds = score.pod_seconds;
                best = Some(score);
            }
        }
        best.map(|score| Row { controller: format!("{}{TUNED}", peer.name), score })
    }

    /// Ours where something is not as it should be.
    fn odd(&self, run: impl Fn(Odd, &mut dyn Controller) -> Score) -> [Row; 5] {
        let profile = self.profile;
        let usual = Odd::default();
        let random = Odd { random_routing: true, ..usual };
        let slow = Odd { slow_pod: true, ..usual };
        [
            ("slow-pod", slow, Lithe::new(profile)),
            ("prior-30-percent-fast", usual, Lithe::with_prior(profile, 0.7)),
            ("random-routing", random, Lithe::direct(profile)),
            ("random-routing-untold", random, Lithe::new(profile)),
            ("lost-scrapes", usual, Lithe::with_losses(profile, 0.2)),
        ]
        .map(|(name, odd, mut lithe)| Row {
            controller: format!("{OURS}-{name}"),
            score: run(odd, &mut lithe),
        })
    }
}

impl Outcome {
    fn ours(&self) -> Option<&Score> {
        self.rows.iter().find(|row| row.controller == OURS).map(|row| &row.score)
    }

    /// What ours costs, over the oracle.
    pub fn cost(&self) -> Option<f64> {
        self.ours().map(|score| score.pod_seconds / self.oracle)
    }

    /// How ours stands beside the tuned peers, each of which is at its cheapest at no more late
    /// requests than ours, or 1 %.
    pub fn standing(&self) -> Standing {
        let Some(ours) = self.ours() else { return Standing::default() };
        let tuned = || self.rows.iter().filter(|row| row.controller.ends_with(TUNED));
        let product = |score: &Score| score.late_percent() * score.pod_seconds;
        Standing {
            undominated: tuned().all(|row| {
                let (late, cost) = (row.score.late_percent(), row.score.pod_seconds);
                late > ours.late_percent() || cost > ours.pod_seconds
            }),
            cheapest: tuned().all(|row| row.score.pod_seconds > ours.pod_seconds),
            least_product: tuned().all(|row| product(&row.score) > product(ours)),
        }
    }
}

/// Three readings of "ahead of every tuned peer on late requests and cost".
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// No peer is at most as late and at most as dear.
    pub undominated: bool,
    /// No peer is at most as dear.
    pub cheapest: bool,
    /// No peer has a product of both that is as small; a peer without a late request wins it at any
    /// cost.
    pub least_product: bool,
}
