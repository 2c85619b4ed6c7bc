//! `kvtier bench codec`: how much smaller KV gets, how fast, and on which links that pays.
//!
//! Contenders take turns, block by block as a remote store would encode them, on one core. Time is that of the
//! processor and not of the clock: nothing here waits for anything but memory, and other work on the machine is not
//! counted. What is decoded is compared with what was encoded.

mod contenders;
mod data;

use std::fmt;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

pub use contenders::Contender;
pub use data::{Data, all as data};

use crate::report::{Machine, Sample, Table};

/// Links for which the time of a load is told, in Gbit/s.
const LINKS: [f64; 3] = [1.0, 10.0, 25.0];

/// In place of infinity, which JSON does not know: decoding is as fast as a copy.
const EVERY_LINK: f64 = 1e6;

/// One contender on one kind of data.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Which bytes.
    pub data: &'static str,
    /// Who.
    pub contender: String,
    /// Bytes before by bytes after.
    pub ratio: f64,
    /// 10^9 bytes of KV per second of processor time.
    pub encode_gigabytes_per_second: Sample,
    /// Likewise.
    pub decode_gigabytes_per_second: Sample,
    /// Links slower than this load faster encoded than raw, decoded on one core after the transfer; 1e6 if all do,
    /// `None` if none does.
    pub pays_below_gigabits_per_second: Option<f64>,
    /// Time of a load as a share of that of a raw one, for links of 1, 10 and 25 Gbit/s.
    pub share_of_raw_load: [f64; 3],
}

impl Figure {
    /// A load takes `1/(ratio*link) + 1/decode` seconds per byte, a raw one `1/link + 1/memcpy`.
    fn new(
        data: &'static str,
        contender: &str,
        ratio: f64,
        encode: Sample,
        decode: Sample,
        memcpy: Sample,
    ) -> Self {
        let raw_copy = 1.0 / memcpy.median;
        let decoding = 1.0 / decode.median;
        let saved = 1.0 - 1.0 / ratio;
        let seconds = |link: f64, ratio: f64, after: f64| 8.0 / link / ratio + after;
        Self {
            data,
            contender: contender.to_owned(),
            ratio,
            encode_gigabytes_per_second: encode,
            decode_gigabytes_per_second: decode,
            pays_below_gigabits_per_second: (saved > 0.0)
                .then(|| (8.0 * saved / (decoding - raw_copy).max(1e-9)).min(EVERY_LINK)),
            share_of_raw_load: LINKS
                .map(|link| seconds(link, ratio, decoding) / seconds(link, 1.0, raw_copy)),
        }
    }
}

/// Bytes that came back are not those that were encoded: figures of such a run mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{contender} does not give back what it encoded ({data})")]
pub struct WrongBytes {
    contender: String,
    data: &'static str,
}

/// Seconds that this thread has had the processor.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Everybody on one kind of data.
///
/// # Errors
/// [`WrongBytes`].
pub fn measure(data: &Data, rounds: usize) -> Result<Vec<Figure>, WrongBytes> {
    let mut contenders = contenders::all(data.elements);
    let mut rates = vec![(Vec::new(), Vec::new()); contenders.len()];
    let mut ratios = vec![1.0; contenders.len()];
    let mut encoded = Vec::with_capacity(2 * data.bytes.len());
    let mut ends = Vec::new();
    let mut decoded = vec![0; data.bytes.len()];
    let rate = |start: f64| data.bytes.len() as f64 / 1e9 / (cpu_seconds() - start).max(1e-9);
    // Round 0 is warm-up and comparison.
    for round in 0..=rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            let contender = &mut contenders[at];
            encoded.clear();
            ends.clear();
            let start = cpu_seconds();
            for block in data.bytes.chunks(data.block) {
                (contender.encode)(block, &mut encoded);
                ends.push(encoded.len());
            }
            let encode = rate(start);
            let start = cpu_seconds();
            let mut from = 0;
            for (block, end) in decoded.chunks_mut(data.block).zip(&ends) {
                (contender.decode)(&encoded[from..*end], block);
                from = *end;
            }
            let decode = rate(start);
            if round > 0 {
                rates[at].0.push(encode);
                rates[at].1.push(decode);
            } else if decoded == data.bytes {
                ratios[at] = data.bytes.len() as f64 / encoded.len() as f64;
                // The next one must do it himself.
                decoded.fill(0xA5);
            } else {
                return Err(WrongBytes { contender: contender.name.clone(), data: data.name });
            }
        }
    }
    let samples: Vec<_> =
        rates.into_iter().filter_map(|(e, d)| Some((Sample::of(e)?, Sample::of(d)?))).collect();
    let Some(&(_, memcpy)) = samples.first() else { return Ok(Vec::new()) };
    let figures = contenders.iter().zip(ratios).zip(samples);
    Ok(figures.map(|((c, ratio), (e, d))| Figure::new(data.name, &c.name, ratio, e, d, memcpy)).collect())
}

/// The result of the command.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Form of this object; changes when a reader would have to.
    pub schema: &'static str,
    /// Where.
    pub machine: Machine,
    /// How often.
    pub rounds: usize,
    /// What came out.
    pub figures: Vec<Figure>,
}

impl Summary {
    /// Of figures that were taken just now.
    #[must_use]
    pub fn new(figures: Vec<Figure>, rounds: usize) -> Self {
        Self { schema: "kvtier.bench.codec/1", machine: Machine::here(), rounds, figures }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(
            f,
            "GB/s of KV per second of processor time, median (min..max) of {} rounds. `pays` is the link, in Gbit/s, below which an \
             encoded load is faster than a raw one, decoded on one core after the transfer; the last three columns are \
             an encoded load in % of a raw one on links of 1, 10 and 25 Gbit/s.\n",
            self.rounds
        )?;
        let mut table = Table::new(&["data", "codec", "ratio", "encode", "decode", "pays", "1", "10", "25"]);
        for figure in &self.figures {
            let mut cells = vec![
                figure.data.to_owned(),
                figure.contender.clone(),
                format!("{:.3}", figure.ratio),
                format!("{:.2}", figure.encode_gigabytes_per_second),
                format!("{:.2}", figure.decode_gigabytes_per_second),
                match figure.pays_below_gigabits_per_second {
                    None => "-".to_owned(),
                    Some(EVERY_LINK) => "all".to_owned(),
                    Some(link) => format!("{link:.0}"),
                },
            ];
            cells.extend(figure.share_of_raw_load.map(|share| format!("{:.0}", 100.0 * share)));
            table.row(cells);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_as_fast_as_what_decoding_costs_is_where_it_stops_to_pay() {
        let sample = |x| Sample { median: x, min: x, max: x };
        // Half the bytes, 2 GB/s and a copy of 4 GB/s: a byte saves 0.5/link and costs 0.25 ns.
        let figure = Figure::new("x", "y", 2.0, sample(1.0), sample(2.0), sample(4.0));
        assert_eq!(figure.pays_below_gigabits_per_second, Some(16.0));
        // At 1 Gbit/s 4 + 0.5 against 8 + 0.25.
        assert!((figure.share_of_raw_load[0] - 4.5 / 8.25).abs() < 1e-12);
        assert!(figure.share_of_raw_load[2] > 1.0);
        let raw = Figure::new("x", "y", 1.0, sample(1.0), sample(4.0), sample(4.0));
        assert_eq!(raw.pays_below_gigabits_per_second, None);
    }

    #[test]
    fn everybody_gives_back_what_it_encoded() {
        for data in data(1) {
            let figures = measure(&data, 1).unwrap();
            assert_eq!((figures[0].contender.as_str(), figures[0].ratio), ("memcpy", 1.0));
            let ours = &figures[1];
            let (least, most) = match data.name {
                "random" => (1.0, 1.0),
                "zeros" => (1000.0, 1e5),
                "normal, bf16" => (1.4, 1.52),
                _ => (1.05, 1.7),
            };
            assert!((least..=most).contains(&ours.ratio), "{}: {}", data.name, ours.ratio);
        }
    }
}
