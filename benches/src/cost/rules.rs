//! The rules that are compared: what others ship, the two extremes, and who knows everything.

use std::collections::HashMap;

use kv_core::cost::TokenRange;

use super::world::{Pull, TOKEN_BYTES};

/// What a rule is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Number of the request.
    pub request: usize,
    /// What could be loaded.
    pub prefix: TokenRange,
    /// Tokens of the whole prompt.
    pub prompt: u32,
    /// What recomputing it will really take. Only the oracle looks.
    pub recompute: f64,
    /// What computing the whole prompt will really take.
    pub whole: f64,
    /// What loading it will really do. Only the oracle looks.
    pub pull: Pull,
}

impl Question {
    /// Bytes of the prefix.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.prefix.len()) * TOKEN_BYTES
    }
}

/// A wait for a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wait {
    /// Seconds after which the recompute begins.
    pub deadline: f64,
    /// Whether the load goes on beside it.
    pub race: bool,
}

/// A read that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probing {
    /// How much.
    pub bytes: u64,
    /// Seconds after which it is given up.
    pub deadline: f64,
}

/// What a rule wants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    /// The load to wait for; none: recompute.
    pub wait: Option<Wait>,
    /// What is read beside it.
    pub probe: Option<Probing>,
    /// The time that the rule expects nine loads in ten not to exceed.
    pub p90: Option<f64>,
}

/// What became of a load or a probe. Seconds since it began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    /// It was there after that.
    Arrived(f64),
    /// Known to have failed after that.
    Failed(f64),
    /// The request waited so long for it, and it ran so long.
    TooLate(f64, f64),
}

/// What a rule is told, when it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum News {
    /// A load has ended.
    Load(usize, Ending),
    /// A probe has ended.
    Probe(usize, Ending),
    /// A pass has ended.
    Pass(TokenRange, f64),
}

/// Decides load or recompute. Times are seconds since the first request.
pub trait Rule {
    /// As printed.
    fn name(&self) -> &'static str;
    /// Load or recompute?
    fn choose(&mut self, now: f64, question: &Question) -> Choice;
    /// Something has ended.
    fn hear(&mut self, _now: f64, _news: &News) {}
    /// What a pass over `range` is expected to take, if the rule has an opinion.
    fn expected_pass(&self, _now: f64, _range: TokenRange) -> Option<f64> {
        None
    }
}

fn wait(deadline: f64) -> Choice {
    Choice { wait: Some(Wait { deadline, race: false }), ..Choice::default() }
}

/// Never loads.
pub(super) struct NeverLoad;
impl Rule for NeverLoad {
    fn name(&self) -> &'static str {
        "never load"
    }
    fn choose(&mut self, _: f64, _: &Question) -> Choice {
        Choice::default()
    }
}

/// Loads whatever is there and waits for it, half a minute at most.
pub(super) struct AlwaysLoad;
impl Rule for AlwaysLoad {
    fn name(&self) -> &'static str {
        "always load"
    }
    fn choose(&mut self, _: f64, _: &Question) -> Choice {
        wait(30.0)
    }
}

/// SGLang's timeout: 1 s and 0.25 s per 1,024 tokens.
fn timeout(prefix: TokenRange) -> f64 {
    1.0 + 0.25 * f64::from(prefix.len()) / 1024.0
}

/// From 256 tokens on, with SGLang's timeout.
pub(super) struct Threshold;
impl Rule for Threshold {
    fn name(&self) -> &'static str {
        "threshold + timeout"
    }
    fn choose(&mut self, _: f64, q: &Question) -> Choice {
        if q.prefix.len() >= 256 { wait(timeout(q.prefix)) } else { Choice::default() }
    }
}

/// Compares means, as llm-d's router proposes: recompute by the published curve, loads by the published pull times
/// scaled with a running mean. Same timeout.
pub(super) struct MeanCost {
    slower: f64,
    busier: f64,
    /// Tokens of loads under way, by request.
    loading: HashMap<usize, u32>,
}
impl Default for MeanCost {
    fn default() -> Self {
        Self { slower: 1.0, busier: 1.0, loading: HashMap::new() }
    }
}
impl MeanCost {
    fn recompute(prefix: TokenRange) -> f64 {
        let (n0, n1) = (f64::from(prefix.start.0), f64::from(prefix.end.0));
        24.6e-6 * (n1 - n0) + 6.24e-10 * (n1 * n1 - n0 * n0) / 2.0
    }
    fn pull(tokens: u32) -> f64 {
        0.0255 + 4.07e-6 * f64::from(tokens)
    }
}
impl Rule for MeanCost {
    fn name(&self) -> &'static str {
        "mean cost + timeout"
    }
    fn choose(&mut self, _: f64, q: &Question) -> Choice {
        // Without probes what was once found slow stays so; one load in fifty is made to look.
        let worth = self.slower * Self::pull(q.prefix.len()) < self.busier * Self::recompute(q.prefix);
        if !worth && !q.request.is_multiple_of(50) {
            return Choice::default();
        }
        self.loading.insert(q.request, q.prefix.len());
        wait(timeout(q.prefix))
    }
    fn hear(&mut self, _: f64, news: &News) {
        match *news {
            News::Pass(range, took) => {
                self.busier += 0.1 * (took / (0.026 + Self::recompute(range)) - self.busier);
            }
            News::Load(request, ending) => {
                let tokens = self.loading.remove(&request);
                if let (Some(tokens), Ending::Arrived(took) | Ending::TooLate(_, took)) = (tokens, ending) {
                    self.slower += 0.1 * (took / Self::pull(tokens) - self.slower);
                }
            }
            News::Probe(..) => {}
        }
    }
}

/// The oracle under the promise that no request takes more than 1.5 times its recompute: since it could not know that a
/// load arrives, it waits no longer than half of that. What a rule that gives late loads up can reach at best.
pub(super) struct BoundOracle;
impl Rule for BoundOracle {
    fn name(&self) -> &'static str {
        "oracle bound by 1.5x"
    }
    fn choose(&mut self, _: f64, q: &Question) -> Choice {
        match q.pull {
            Pull::Arrives(took) if took < q.recompute && took <= 0.5 * q.whole => wait(q.recompute),
            _ => Choice::default(),
        }
    }
}

/// Knows what either way will take and chooses the shorter: nobody who chooses before can do better.
pub(super) struct Oracle;
impl Rule for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }
    fn choose(&mut self, _: f64, q: &Question) -> Choice {
        match q.pull {
            Pull::Arrives(took) if took < q.recompute => wait(q.recompute),
            _ => Choice::default(),
        }
    }
}
