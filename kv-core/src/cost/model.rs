//! The state of a cost model: one recompute curve, its sources, one ledger.

use super::breaker::Breaker;
use super::decide::{Ask, PATIENCE};
use super::failure::FailureRisk;
use super::forecast::LoadSize;
use super::ledger::{Balance, Ledger};
use super::load::LoadModel;
use super::priors::{CurvePrior, LinkPrior};
use super::recompute::{RecomputeCurve, TokenRange};
use super::snapshot::{Damaged, Reader, RestoreError, Writer};
use crate::key::Fingerprint;
use crate::units::{Bytes, Nanos, Tokens};

/// Names one source of a [`CostModel`]: a remote, or a local tier that is slow enough to be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub(super) u8);

/// One source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// As in metrics; at most 255 bytes. What was learnt is found again by it.
    pub name: String,
    /// What is believed before anything was measured.
    pub link: LinkPrior,
}

/// What a [`CostModel`] is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct CostConfig {
    /// The model and layout whose recompute is learnt.
    pub fingerprint: Fingerprint,
    /// What is believed about it; see [`priors::curve`](super::priors::curve).
    pub curve: CurvePrior,
    /// Where blocks can be loaded from.
    pub sources: Vec<SourceConfig>,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// More than 255.
    #[error("{0} sources are too many")]
    TooManySources(usize),
    /// Two sources of one name, or a name that is too long or empty.
    #[error("the name of source {0:?} is empty, longer than 255 bytes, or used twice")]
    BadName(String),
    /// A prior that is not a positive finite number.
    #[error("the prior of {0:?} is not a positive number")]
    BadPrior(String),
}

#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) load: LoadModel,
    pub(super) risk: FailureRisk,
    pub(super) breaker: Breaker,
    /// No further probe before: one at a time.
    pub(super) next_probe: Nanos,
    /// How long it may go unobserved while it is refused.
    pub(super) patience: Nanos,
}

/// See the [module's head](super).
#[derive(Clone, Debug)]
pub struct CostModel {
    fingerprint: Fingerprint,
    pub(super) curve: RecomputeCurve,
    pub(super) sources: Vec<Source>,
    pub(super) ledger: Ledger,
}

impl CostModel {
    /// A model that believes its priors.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: CostConfig) -> Result<Self, ConfigError> {
        let CostConfig { fingerprint, curve, sources } = config;
        if sources.len() > 255 {
            return Err(ConfigError::TooManySources(sources.len()));
        }
        let good = |numbers: &[f64]| numbers.iter().all(|x| *x > 0.0 && x.is_finite());
        if !good(&[curve.per_pass, curve.per_token, curve.per_pair, curve.doubt]) {
            return Err(ConfigError::BadPrior(curve.model.to_owned()));
        }
        for (i, source) in sources.iter().enumerate() {
            let name = &source.name;
            if name.is_empty() || name.len() > 255 || sources[..i].iter().any(|s| s.name == *name) {
                return Err(ConfigError::BadName(name.clone()));
            }
            if !good(&[source.link.fixed, source.link.per_byte, source.link.doubt]) {
                return Err(ConfigError::BadPrior(name.clone()));
            }
        }
        let sources = sources.into_iter().map(|source| Source {
            name: source.name,
            load: LoadModel::new(&source.link),
            risk: FailureRisk::default(),
            breaker: Breaker::new(),
            next_probe: Nanos(0),
            patience: PATIENCE,
        });
        Ok(Self {
            fingerprint,
            curve: RecomputeCurve::new(&curve),
            sources: sources.collect(),
            ledger: Ledger::default(),
        })
    }

    /// Finds a source by name.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<SourceId> {
        self.sources.iter().position(|s| s.name == name).map(|i| SourceId(i as u8))
    }

    /// Name of a source; `unknown` for an id of another model.
    #[must_use]
    pub fn source_name(&self, id: SourceId) -> &str {
        self.sources.get(usize::from(id.0)).map_or("unknown", |s| &s.name)
    }

    /// The account at this moment.
    #[must_use]
    pub const fn balance(&self) -> Balance {
        self.ledger.balance()
    }

    /// What recomputing takes, as learnt so far.
    #[must_use]
    pub const fn curve(&self) -> &RecomputeCurve {
        &self.curve
    }

    /// Bytes that are being loaded or probed from a source.
    #[must_use]
    pub fn in_flight(&self, id: SourceId) -> Bytes {
        self.sources.get(usize::from(id.0)).map_or(Bytes(0), |s| s.load.in_flight())
    }

    /// The largest load that a source was measured well enough for; `None` if it was hardly measured at all. A larger
    /// one is not admitted, but the first part of it may be.
    #[must_use]
    pub fn largest_known(&self, id: SourceId) -> Option<Bytes> {
        self.sources.get(usize::from(id.0))?.load.largest_known()
    }

    /// A pass of prefill over `range` has ended after `took`. Every pass is reported once, also those that follow a load,
    /// whether it came or not; a pass that was broken off is not.
    pub fn observed_prefill(&mut self, now: Nanos, range: TokenRange, took: Nanos) {
        self.curve.observe(now, range, took);
        self.ledger.pass(took);
    }

    /// For runtimes that load and compute at once: how many tokens of the asked range to compute from its front while
    /// the rest is loaded from its end. `None` for an unknown source.
    #[must_use]
    pub fn split(&self, now: Nanos, ask: &Ask, source: SourceId, size: &LoadSize) -> Option<Tokens> {
        let source = self.sources.get(usize::from(source.0))?;
        let load = source.load.forecast(now, size);
        let slopes = self.curve.slopes(now);
        Some(Tokens(super::split::split(ask.range, slopes, &load, source.load.fixed(now))))
    }

    /// Everything learnt, and the account, as bytes for [`restore`](Self::restore). Loads under way count as lost.
    #[must_use]
    pub fn snapshot(&self, now: Nanos) -> Vec<u8> {
        let mut out = Writer::new(self.fingerprint);
        self.curve.save(&mut out, now);
        self.ledger.save(&mut out);
        out.u8(self.sources.len() as u8);
        for source in &self.sources {
            out.name(&source.name);
            source.load.save(&mut out, now);
            source.risk.save(&mut out);
        }
        out.finish()
    }

    /// Takes over what an earlier process has learnt. Sources are found by name; those that are not configured any more
    /// are forgotten, those that are new keep their priors. Breakers start closed.
    ///
    /// # Errors
    /// [`RestoreError`]; the model is then as it was.
    pub fn restore(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut from = Reader::open(bytes, self.fingerprint)?;
        let mut restored = self.clone();
        restored.curve.load(&mut from, now)?;
        restored.ledger.load(&mut from)?;
        for _ in 0..from.u8()? {
            let name = from.name()?;
            let known = restored.sources.iter_mut().find(|s| s.name.as_bytes() == name);
            // A left-over is read like any other, to get past it.
            let mut left_over = None;
            let source = match known {
                Some(source) => source,
                None => left_over.insert(Source {
                    name: String::new(),
                    load: LoadModel::new(&super::priors::NETWORK),
                    risk: FailureRisk::default(),
                    breaker: Breaker::new(),
                    next_probe: now,
                    patience: PATIENCE,
                }),
            };
            source.load.load(&mut from, now)?;
            source.risk.load(&mut from)?;
        }
        from.end().map_err(|Damaged| RestoreError::Damaged)?;
        *self = restored;
        Ok(())
    }
}
