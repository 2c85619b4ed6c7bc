//! Lengths, arrivals and reuse of a trace, as a cost model sees them.

use std::collections::HashSet;

use kv_core::cost::TokenRange;

use crate::trace::Request;

/// One request. Everything that was sent before is in the remote store and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Seconds since the first request.
    pub at: f64,
    /// Tokens of the prompt; at least 1.
    pub input: u32,
    /// Leading tokens that were sent before. Less than `input`: the last token is always computed.
    pub stored: u32,
}

impl Arrival {
    /// What could be loaded.
    #[must_use]
    pub const fn prefix(&self) -> TokenRange {
        TokenRange::new(0, self.stored)
    }

    /// What is computed whatever is loaded.
    #[must_use]
    pub const fn suffix(&self) -> TokenRange {
        TokenRange::new(self.stored, self.input)
    }

    /// The whole prompt.
    #[must_use]
    pub const fn prompt(&self) -> TokenRange {
        TokenRange::new(0, self.input)
    }
}

/// Turns a trace into arrivals. A short one is played again, with what it finds, until there are `at_least`.
#[must_use]
pub fn arrivals(requests: &[Request], block_tokens: u32, at_least: usize) -> Vec<Arrival> {
    let mut seen = HashSet::<u64>::new();
    let start = requests.first().map_or(0, |r| r.timestamp_ms);
    let mut latest = 0.0_f64;
    let once: Vec<_> = requests
        .iter()
        .filter(|r| r.input_tokens > 0)
        .map(|r| {
            latest = latest.max(r.timestamp_ms.saturating_sub(start) as f64 / 1e3);
            let blocks = r.hash_ids.iter().take_while(|id| seen.contains(*id)).count() as u32;
            seen.extend(&r.hash_ids);
            let stored = blocks.saturating_mul(block_tokens).min(r.input_tokens - 1);
            Arrival { at: latest, input: r.input_tokens, stored }
        })
        .collect();
    let mut all = once.clone();
    let pause = 1.0 + latest / once.len().max(1) as f64;
    let mut shift = 0.0;
    while all.len() < at_least && !once.is_empty() {
        shift += latest + pause;
        all.extend(once.iter().map(|a| Arrival { at: a.at + shift, ..*a }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(timestamp_ms: u64, input_tokens: u32, hash_ids: &[u64]) -> Request {
        Request { timestamp_ms, input_tokens, output_tokens: 1, hash_ids: hash_ids.to_vec() }
    }

    #[test]
    fn finds_what_was_sent_before() {
        let trace = [request(5, 20, &[1, 2]), request(1005, 25, &[1, 2, 3]), request(900, 20, &[1, 2])];
        let all = arrivals(&trace, 10, 0);
        assert_eq!(all.iter().map(|a| a.stored).collect::<Vec<_>>(), [0, 20, 19]);
        assert_eq!(all.iter().map(|a| a.at).collect::<Vec<_>>(), [0.0, 1.0, 1.0], "time does not go back");
    }

    #[test]
    fn a_short_trace_is_played_again() {
        let all = arrivals(&[request(0, 20, &[1, 2]), request(1000, 30, &[1, 2, 3])], 10, 5);
        assert_eq!(all.len(), 6);
        assert!(all.windows(2).all(|w| w[0].at <= w[1].at));
        assert_eq!(all[3].stored, all[1].stored);
        assert!(arrivals(&[], 10, 5).is_empty());
    }
}
