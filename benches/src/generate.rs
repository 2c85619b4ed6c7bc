//! A trace like the ones coding agents leave: made from a seed, endless variety, no customer's data.
//!
//! Tenants share nothing. Inside a tenant, sessions begin with one of a few system prompts; each turn sends
//! the whole conversation again, grown by the last answer and by a tool's output or a user's message.
//! Tools answer in seconds, users in minutes. Some sessions start over from their system prompt when the
//! context is full or the agent gives up; some branch, and the branch shares the prefix up to its root.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::Serialize;

use crate::SplitMix64;
use crate::trace::Request;

const SYSTEM_PROMPTS_PER_TENANT: u64 = 3;
/// A context that would outgrow this starts over (128 Ki tokens, the window of common models).
const CONTEXT_TOKENS: u64 = 128 << 10;

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AgentTrace {
    /// Same parameters, same seed: same trace, on any machine.
    pub seed: u64,
    /// Tenants that the sessions are spread over; at least 1.
    pub tenants: u32,
    /// Sessions that arrive; branches come on top.
    pub sessions: u32,
    /// Tokens per block; at least 1.
    pub block_tokens: u32,
}

impl Default for AgentTrace {
    /// Small enough to replay in a second, large enough that capacity matters.
    fn default() -> Self {
        Self { seed: 1, tenants: 4, sessions: 64, block_tokens: 16 }
    }
}

/// One request and who sent it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentRequest {
    /// 0-based.
    pub tenant: u32,
    /// 0-based; branches are numbered after the sessions, in order of appearance.
    pub session: u32,
    /// What was asked.
    pub request: Request,
}

impl AgentTrace {
    /// The requests in order of arrival.
    ///
    /// ```
    /// use kvtier_benches::generate::AgentTrace;
    /// let trace = AgentTrace { sessions: 10, ..AgentTrace::default() };
    /// assert!(trace.requests().eq(trace.requests()));
    /// ```
    #[must_use]
    pub fn requests(&self) -> Requests {
        let mut rng = SplitMix64::new(self.seed);
        let block_tokens = u64::from(self.block_tokens.max(1));
        let tenants = u64::from(self.tenants.max(1));
        let mut next_block = 0;
        let systems: Vec<Context> = (0..tenants * SYSTEM_PROMPTS_PER_TENANT)
            .map(|_| {
                let mut context = Context::default();
                context.grow(rng.skewed(1_000, 8_000), block_tokens, &mut next_block);
                context
            })
            .collect();
        let mut due = BinaryHeap::new();
        let mut sessions = Vec::new();
        let mut now = 0;
        for number in 0..self.sessions {
            now += rng.skewed(100, 20_000);
            // Squaring the draw favours the first tenants: load is never even.
            let tenant = rng.below(tenants) * rng.below(tenants) / tenants;
            let system = tenant * SYSTEM_PROMPTS_PER_TENANT + rng.below(SYSTEM_PROMPTS_PER_TENANT);
            let mut context = systems[system as usize].clone();
            context.grow(rng.skewed(50, 2_000), block_tokens, &mut next_block);
            sessions.push(Session {
                tenant: tenant as u32,
                system: systems[system as usize].clone(),
                context,
                turns_left: rng.skewed(4, 60) as u32,
                may_branch: true,
            });
            due.push(Reverse((now, number)));
        }
        Requests { rng, block_tokens, next_block, sessions, due }
    }
}

/// A conversation so far, as block ids. Copies share their blocks.
#[derive(Clone, Debug, Default)]
struct Context {
    tokens: u64,
    /// Full blocks; the tokens behind them fill a part of one more.
    blocks: Vec<u64>,
}

impl Context {
    fn grow(&mut self, tokens: u64, block_tokens: u64, next_block: &mut u64) {
        self.tokens += tokens;
        while (self.blocks.len() as u64 + 1) * block_tokens <= self.tokens {
            self.blocks.push(fresh(next_block));
        }
    }

    /// The first part of it: whole blocks only.
    fn prefix(&self, blocks: usize, block_tokens: u64) -> Self {
        let blocks = self.blocks[..blocks.min(self.blocks.len())].to_vec();
        Self { tokens: blocks.len() as u64 * block_tokens, blocks }
    }
}

fn fresh(next_block: &mut u64) -> u64 {
    *next_block += 1;
    *next_block - 1
}

struct Session {
    tenant: u32,
    system: Context,
    context: Context,
    turns_left: u32,
    may_branch: bool,
}

/// Iterator over a generated trace, made by [`AgentTrace::requests`].
pub struct Requests {
    rng: SplitMix64,
    block_tokens: u64,
    next_block: u64,
    sessions: Vec<Session>,
    /// When each live session sends its next request: (ms, session).
    due: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Requests {
    /// What happens between this turn's prompt and the next one's. Returns the time until then in ms.
    fn turn(&mut self, number: u32, now: u64, output: u64) -> u64 {
        let rng = &mut self.rng;
        let session = &mut self.sessions[number as usize];
        // Generation takes about 20 ms per token before anything can follow.
        let mut pause = output * 20;
        let input = if rng.once_in(6) {
            pause += rng.skewed(4_000, 600_000);
            rng.skewed(10, 1_000)
        } else {
            pause += rng.skewed(50, 30_000);
            // A tool's output: mostly short, sometimes a whole file.
            rng.skewed(20, 8_000)
        };
        if session.context.tokens + output + input > CONTEXT_TOKENS || rng.once_in(30) {
            session.context = session.system.clone();
        } else {
            session.context.grow(output, self.block_tokens, &mut self.next_block);
        }
        session.context.grow(input, self.block_tokens, &mut self.next_block);

        if session.may_branch && session.turns_left > 2 && rng.once_in(12) {
            let system = session.system.blocks.len();
            let root = rng.between(system as u64, session.context.blocks.len() as u64) as usize;
            let mut context = session.context.prefix(root, self.block_tokens);
            context.grow(rng.skewed(50, 2_000), self.block_tokens, &mut self.next_block);
            let branch = Session {
                tenant: session.tenant,
                system: session.system.clone(),
                context,
                turns_left: rng.skewed(1, session.turns_left.into()) as u32,
                may_branch: false,
            };
            self.due.push(Reverse((now + rng.skewed(10, 2_000), self.sessions.len() as u32)));
            self.sessions.push(branch);
        }
        pause
    }
}

impl Iterator for Requests {
    type Item = AgentRequest;

    fn next(&mut self) -> Option<AgentRequest> {
        let Reverse((now, number)) = self.due.pop()?;
        let session = &mut self.sessions[number as usize];
        session.turns_left = session.turns_left.saturating_sub(1);
        let output = self.rng.skewed(20, 1_500);
        let mut hash_ids = session.context.blocks.clone();
        if !session.context.tokens.is_multiple_of(self.block_tokens) {
            // The half-filled block at the end: other content by the next turn, hence another id.
            hash_ids.push(fresh(&mut self.next_block));
        }
        let request = AgentRequest {
            tenant: session.tenant,
            session: number,
            request: Request {
                timestamp_ms: now,
                input_tokens: session.context.tokens as u32,
                output_tokens: output as u32,
                hash_ids,
            },
        };
        if session.turns_left > 0 {
            let pause = self.turn(number, now, output);
            self.due.push(Reverse((now + pause, number)));
        } else {
            session.context = Context::default();
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn generate(seed: u64) -> Vec<AgentRequest> {
        AgentTrace { seed, ..AgentTrace::default() }.requests().collect()
    }

    #[test]
    fn the_seed_decides_everything() {
        assert_eq!(generate(3), generate(3));
        assert_ne!(generate(3), generate(4));
    }

    #[test]
    fn arrives_in_order_and_counts_its_blocks() {
        for block_tokens in [1, 16, 512, u32::MAX] {
            let trace = AgentTrace { block_tokens, ..AgentTrace::default() };
            let mut last = 0;
            for AgentRequest { request, .. } in trace.requests() {
                assert!(request.timestamp_ms >= last);
                last = request.timestamp_ms;
                assert_eq!(request.hash_ids.len() as u32, request.input_tokens.div_ceil(block_tokens));
                assert!(u64::from(request.input_tokens) <= CONTEXT_TOKENS + 16_000);
            }
        }
    }

    /// An id names content in context: it always follows the same id, at the same depth, in one tenant.
    #[test]
    fn every_block_has_one_prefix_and_one_tenant() {
        let mut seen = HashMap::new();
        for AgentRequest { tenant, request, .. } in generate(5) {
            let mut before = None;
            for (depth, id) in request.hash_ids.iter().enumerate() {
                let context = (tenant, before, depth);
                assert_eq!(*seen.entry(*id).or_insert(context), context);
                before = Some(*id);
            }
        }
    }

    #[test]
    fn looks_like_agents() {
        let all = generate(1);
        let sessions = AgentTrace::default().sessions;
        assert!(all.iter().any(|r| r.session >= sessions), "some sessions branch");
        let mut turns = HashMap::<u32, Vec<&Request>>::new();
        for r in &all {
            turns.entry(r.session).or_default().push(&r.request);
        }
        assert!(turns.values().any(|t| t.len() > 30) && turns.values().any(|t| t.len() < 10));
        let restarted = |t: &Vec<&Request>| t.windows(2).any(|w| w[1].input_tokens < w[0].input_tokens);
        assert!(turns.values().any(restarted), "some sessions start over");

        let mut resident = HashSet::<u64>::new();
        let (mut hits, mut blocks) = (0, 0);
        for AgentRequest { request, .. } in &all {
            hits += request.hash_ids.iter().take_while(|id| resident.contains(*id)).count();
            blocks += request.hash_ids.len();
            resident.extend(&request.hash_ids);
        }
        let share = hits as f64 / blocks as f64;
        assert!((0.7..0.99).contains(&share), "{share:.2} of the prompts is reuse");
    }

    #[test]
    fn degenerate_parameters_are_harmless() {
        let none = AgentTrace { seed: 0, tenants: 0, sessions: 0, block_tokens: 0 };
        assert_eq!(none.requests().count(), 0);
        assert!(AgentTrace { sessions: 1, ..none }.requests().count() > 0);
    }
}
