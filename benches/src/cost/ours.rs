//! kvtier's cost model as one of the rules.

use std::collections::HashMap;

use kv_core::cost::{
    Ask, ConfigError, CostConfig, CostModel, Explanation, LoadSize, LoadTimes, Offer, Outcome, SourceConfig,
    SourceId, Ticket, TokenRange, WhenLate, priors,
};
use kv_core::key::Fingerprint;
use kv_core::units::{Bytes, Nanos, Tokens};

use super::rules::{Choice, Ending, News, Probing, Question, Rule, Wait};
use crate::SplitMix64;

/// See the module's head. Starts from the priors of an unknown model and any network.
pub struct Ours {
    model: CostModel,
    source: SourceId,
    when_late: WhenLate,
    dice: SplitMix64,
    loads: HashMap<usize, Ticket>,
    probes: HashMap<usize, Ticket>,
    last: Option<Explanation>,
}

fn nanos(seconds: f64) -> Nanos {
    Nanos((seconds * 1e9) as u64)
}

impl Ours {
    /// A model that knows nothing yet.
    ///
    /// # Errors
    /// Never with the priors that ship; see [`ConfigError`].
    pub fn new(seed: u64, when_late: WhenLate) -> Result<Self, ConfigError> {
        let remote = SourceConfig { name: "remote".to_owned(), link: priors::NETWORK };
        let model = CostModel::new(CostConfig {
            fingerprint: Fingerprint([0; 16]),
            curve: priors::UNKNOWN,
            sources: vec![remote],
        })?;
        let source = model.source("remote").ok_or_else(|| ConfigError::BadName("remote".to_owned()))?;
        Ok(Self {
            model,
            source,
            when_late,
            dice: SplitMix64::new(!seed),
            loads: HashMap::new(),
            probes: HashMap::new(),
            last: None,
        })
    }

    /// Why the last question was answered so.
    #[must_use]
    pub const fn last(&self) -> Option<&Explanation> {
        self.last.as_ref()
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &CostModel {
        &self.model
    }

    /// The question as the model is asked it.
    #[must_use]
    pub fn ask(&self, question: &Question) -> (Ask, [Offer; 1]) {
        let size = LoadSize::raw(Bytes(question.bytes()));
        (
            Ask { range: question.prefix, prompt_end: Tokens(question.prompt), when_late: self.when_late },
            [Offer { source: self.source, size }],
        )
    }

    /// Takes the model out, as it has become.
    #[must_use]
    pub fn into_model(self) -> CostModel {
        self.model
    }
}

fn outcome(ending: Ending) -> Outcome {
    match ending {
        Ending::Arrived(took) => {
            let times = LoadTimes { transfer: nanos(took), ..LoadTimes::default() };
            Outcome::Arrived { waited: nanos(took), times }
        }
        Ending::Failed(after) => Outcome::Failed { waited: nanos(after) },
        Ending::TooLate(waited, ran) => Outcome::TooLate { waited: nanos(waited), ran: nanos(ran) },
    }
}

impl Rule for Ours {
    fn name(&self) -> &'static str {
        match self.when_late {
            WhenLate::GiveUp => "kvtier",
            WhenLate::Race => "kvtier, racing",
        }
    }

    fn choose(&mut self, now: f64, question: &Question) -> Choice {
        let (ask, offers) = self.ask(question);
        let decision = self.model.decide(nanos(now), &ask, &offers, self.dice.next_u64());
        let p90 = decision.why.source.map(|source| source.p90);
        self.last = Some(decision.why);
        let probe = decision.probe.map(|probe| {
            self.probes.insert(question.request, probe.ticket);
            Probing { bytes: probe.bytes.0, deadline: probe.deadline.as_secs_f64() }
        });
        let wait = decision.load.map(|load| {
            self.loads.insert(question.request, load.ticket);
            Wait { deadline: load.deadline.as_secs_f64(), race: self.when_late == WhenLate::Race }
        });
        Choice { wait, probe, p90 }
    }

    fn hear(&mut self, now: f64, news: &News) {
        let now = nanos(now);
        match *news {
            News::Pass(range, took) => self.model.observed_prefill(now, range, nanos(took)),
            News::Load(request, ending) => {
                if let Some(ticket) = self.loads.remove(&request) {
                    self.model.settle(now, ticket, outcome(ending));
                }
            }
            News::Probe(request, ending) => {
                if let Some(ticket) = self.probes.remove(&request) {
                    self.model.settle(now, ticket, outcome(ending));
                }
            }
        }
    }

    fn expected_pass(&self, now: f64, range: TokenRange) -> Option<f64> {
        Some(self.model.curve().pass(nanos(now), range))
    }
}
