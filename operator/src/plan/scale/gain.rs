//! Whether more pods helped: where something that all pods share is the bottleneck, more of them do
//! not, and ordering yet more would only press it harder.

/// What pods answered while they were overloaded.
#[derive(Clone, Debug, Default)]
pub struct Gain {
    /// Fewer pods, the answers per second they gave, and when.
    before: Option<(u32, f64, f64)>,
    /// Pods beyond which nothing is gained, and until when that is believed.
    bound: Option<(u32, f64)>,
}

/// So many times the pods must have been ready before a conclusion is drawn.
const GROWN: f64 = 1.5;
/// With them, answers must have risen at least by this factor.
const HELPED: f64 = 1.1;
/// How long a conclusion holds, in seconds; then more is tried again.
const BELIEVED: f64 = 600.0;

impl Gain {
    /// Takes in that `pods`, steady and overloaded, gave `answers` per second.
    pub fn overloaded(&mut self, now: f64, pods: u32, answers: f64) {
        match self.before {
            Some((few, gave, when)) if pods >= few && now - when < BELIEVED => {
                if f64::from(pods) < GROWN * f64::from(few) {
                    return;
                }
                if answers < HELPED * gave {
                    self.bound = Some((pods, now + BELIEVED));
                } else {
                    self.before = Some((pods, answers, now));
                }
            }
            _ => self.before = Some((pods, answers, now)),
        }
    }

    /// Pods beyond which nothing is gained, if that was seen.
    pub fn bound(&self, now: f64) -> Option<u32> {
        self.bound.filter(|(_, until)| now < *until).map(|(pods, _)| pods)
    }

    /// What was seen before, for the explanation: pods and answers per second.
    pub fn before(&self) -> Option<(u32, f64)> {
        self.before.map(|(pods, answers, _)| (pods, answers))
    }
}
