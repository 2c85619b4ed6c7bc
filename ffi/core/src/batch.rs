//! Keys and buffers as runtimes have them.

use kv_core::PayloadDigest;
use kv_core::key::{BlockKey, KeyChain};
use kv_tiers::arena::{copy_block, copy_block_summed};

/// Most keys in one batch. A prompt of 16 million tokens in blocks of 16.
pub const MAX_KEYS: usize = 1 << 20;

/// Longest key in bytes. Hashes have 16 to 64; strings name a model, a rank and a hash.
pub const MAX_KEY_BYTES: usize = 4096;

/// Why a batch was refused. Nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// More than [`MAX_KEYS`].
    #[error("{0} keys in one batch; at most {MAX_KEYS} are taken")]
    TooManyKeys(usize),
    /// A key without bytes, or with more than [`MAX_KEY_BYTES`].
    #[error("key {index} has {bytes} bytes; it must have 1 to {MAX_KEY_BYTES}")]
    KeyLength {
        /// Which.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// As many buffers, or block numbers, as keys are needed.
    #[error("{found} entries for {keys} keys")]
    Count {
        /// Entries given.
        found: usize,
        /// Keys given.
        keys: usize,
    },
    /// The runs of a key do not add up to one block.
    #[error("the runs of key {index} have {bytes} bytes together; a block has {block_bytes}")]
    Length {
        /// Which key.
        index: usize,
        /// Bytes of its runs.
        bytes: usize,
        /// Bytes of a block.
        block_bytes: usize,
    },
    /// A run that starts at address 0.
    #[error("run {run} of key {index} has no address")]
    NullRun {
        /// Which key.
        index: usize,
        /// Which of its runs.
        run: usize,
    },
}

/// Keys of blocks, in the order in which the runtime gave them, bound to one namespace.
#[derive(Clone, Debug)]
pub struct KeyBatch(Vec<BlockKey>);

impl KeyBatch {
    /// Binds keys to the namespace of `chain`: the same bytes give another key in another namespace.
    ///
    /// # Errors
    /// [`BatchError::TooManyKeys`], [`BatchError::KeyLength`].
    pub fn wrap<'a>(
        chain: &KeyChain,
        keys: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Self, BatchError> {
        if keys.len() > MAX_KEYS {
            return Err(BatchError::TooManyKeys(keys.len()));
        }
        let wrap = |(index, key): (usize, &[u8])| match key.len() {
            1..=MAX_KEY_BYTES => Ok(chain.wrap_foreign(key)),
            bytes => Err(BatchError::KeyLength { index, bytes }),
        };
        keys.enumerate().map(wrap).collect::<Result<_, _>>().map(Self)
    }

    /// Keys that are of the namespace already.
    #[must_use]
    pub fn of(keys: Vec<BlockKey>) -> Self {
        Self(keys)
    }

    /// The keys.
    #[must_use]
    pub fn as_slice(&self) -> &[BlockKey] {
        &self.0
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A contiguous piece of a runtime's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// First byte.
    pub start: *mut u8,
    /// Number of bytes.
    pub len: usize,
}

// SAFETY: an address and a number. Whoever reads or writes through it answers for that, see `Buffers`.
unsafe impl Send for Run {}
// SAFETY: as above.
unsafe impl Sync for Run {}

/// Where the bytes of each key are to be read or written: one or several runs per block, in the order of the
/// block's bytes. SGLang keeps K and V of a page apart and has two.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    runs: Vec<Run>,
    /// `runs[ends[i - 1]..ends[i]]` belong to key `i`.
    ends: Vec<usize>,
}

impl Buffers {
    /// The same number of runs for every key.
    ///
    /// # Errors
    /// [`BatchError::Count`] when the runs cannot be dealt out evenly.
    pub fn even(runs: Vec<Run>, keys: usize) -> Result<Self, BatchError> {
        let count = || BatchError::Count { found: runs.len(), keys };
        let each = runs.len().checked_div(keys).unwrap_or(0);
        if each * keys != runs.len() {
            return Err(count());
        }
        Ok(Self { ends: (1..=keys).map(|key| key * each).collect(), runs })
    }

    /// `counts[i]` runs for key `i`.
    ///
    /// # Errors
    /// [`BatchError::Count`] when there are more or fewer runs than the counts say.
    pub fn counted(runs: Vec<Run>, counts: &[u32]) -> Result<Self, BatchError> {
        let mut end = 0_usize;
        let ends: Vec<_> = counts
            .iter()
            .map(|count| {
                end = end.saturating_add(*count as usize);
                end
            })
            .collect();
        if end != runs.len() {
            return Err(BatchError::Count { found: runs.len(), keys: counts.len() });
        }
        Ok(Self { runs, ends })
    }

    /// The runs of one key.
    #[must_use]
    pub fn of(&self, key: usize) -> &[Run] {
        let end = self.ends.get(key).copied().unwrap_or(0);
        let start = if key == 0 { 0 } else { self.ends.get(key - 1).copied().unwrap_or(end) };
        self.runs.get(start..end).unwrap_or(&[])
    }

    /// Checks that there are buffers for `keys` keys, each of one block. With `may_lack`, a key may have none.
    ///
    /// # Errors
    /// The first [`BatchError`] found.
    pub fn check(&self, keys: usize, block_bytes: usize, may_lack: bool) -> Result<(), BatchError> {
        if self.ends.len() != keys {
            return Err(BatchError::Count { found: self.ends.len(), keys });
        }
        for index in 0..keys {
            let runs = self.of(index);
            if runs.is_empty() && may_lack {
                continue;
            }
            if let Some(run) = runs.iter().position(|run| run.start.is_null()) {
                return Err(BatchError::NullRun { index, run });
            }
            let bytes = runs.iter().fold(0_usize, |sum, run| sum.saturating_add(run.len));
            if bytes != block_bytes {
                return Err(BatchError::Length { index, bytes, block_bytes });
            }
        }
        Ok(())
    }
}

/// Copies a block out to its runs.
///
/// # Safety
/// The runs are writable memory that nobody else reads or writes meanwhile, and have `block.len()` bytes together.
pub(crate) unsafe fn scatter(block: &[u8], runs: &[Run]) {
    let mut rest = block;
    for run in runs {
        let (piece, tail) = rest.split_at(run.len.min(rest.len()));
        // SAFETY: the caller answers for the run; a block of the arena is never part of a runtime's buffer.
        unsafe { copy_block(piece.as_ptr(), run.start, piece.len()) };
        rest = tail;
    }
}

/// Copies a block in from its runs.
///
/// # Safety
/// The runs are readable memory that nobody writes meanwhile, and have `block.len()` bytes together.
pub(crate) unsafe fn gather(block: &mut [u8], runs: &[Run]) {
    let mut rest = block;
    for run in runs {
        let (piece, tail) = rest.split_at_mut(run.len.min(rest.len()));
        // SAFETY: as in `scatter`.
        unsafe { copy_block(run.start, piece.as_mut_ptr(), piece.len()) };
        rest = tail;
    }
}

/// As [`gather`], and returns the payload's checksum, made on the way.
///
/// # Safety
/// As [`gather`].
pub(crate) unsafe fn gather_summed(block: &mut [u8], runs: &[Run]) -> u64 {
    let mut digest = PayloadDigest::default();
    let mut rest = block;
    for run in runs {
        let (piece, tail) = rest.split_at_mut(run.len.min(rest.len()));
        // SAFETY: as in `scatter`.
        unsafe { copy_block_summed(run.start, piece.as_mut_ptr(), piece.len(), &mut digest) };
        rest = tail;
    }
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_core::key::{Fingerprint, Namespace, NamespaceSecret};
    use kv_core::layout::GroupIndex;
    use kv_core::units::Tokens;

    fn chain() -> KeyChain {
        Namespace::new("t", Fingerprint([1; 16]), &NamespaceSecret::new([2; 32]))
            .chain(GroupIndex(0), Tokens(1))
    }

    fn run(bytes: &mut [u8]) -> Run {
        Run { start: bytes.as_mut_ptr(), len: bytes.len() }
    }

    #[test]
    fn keys_of_any_usual_form_are_told_apart() {
        let keys: [&[u8]; 4] = [b"a", &[0; 16], &[0; 64], b"model@cafe/tp0/0123"];
        let wrapped = KeyBatch::wrap(&chain(), keys.into_iter()).unwrap();
        let distinct: std::collections::HashSet<_> = wrapped.as_slice().iter().collect();
        assert_eq!(distinct.len(), 4);
        let refused = KeyBatch::wrap(&chain(), [&b"a"[..], b""].into_iter()).unwrap_err();
        assert_eq!(refused, BatchError::KeyLength { index: 1, bytes: 0 });
    }

    #[test]
    fn runs_are_dealt_out_and_counted() {
        let (mut a, mut b) = ([0_u8; 6], [0_u8; 2]);
        let runs = vec![run(&mut a), run(&mut b)];
        assert!(Buffers::even(runs.clone(), 3).is_err());
        let even = Buffers::even(runs.clone(), 1).unwrap();
        even.check(1, 8, false).unwrap();
        assert_eq!(even.check(1, 9, false), Err(BatchError::Length { index: 0, bytes: 8, block_bytes: 9 }));
        let counted = Buffers::counted(runs.clone(), &[0, 2]).unwrap();
        assert_eq!((counted.of(0).len(), counted.of(1).len(), counted.of(2).len()), (0, 2, 0));
        assert!(counted.check(2, 8, true).is_ok() && counted.check(2, 8, false).is_err());
        assert!(Buffers::counted(runs, &[1]).is_err());
        let null = Buffers::even(vec![Run { start: std::ptr::null_mut(), len: 8 }], 1).unwrap();
        assert_eq!(null.check(1, 8, false), Err(BatchError::NullRun { index: 0, run: 0 }));
    }

    #[test]
    fn what_is_gathered_is_what_was_scattered() {
        let block: Vec<u8> = (0..8).collect();
        let (mut a, mut b, mut back) = ([0_u8; 5], [0_u8; 3], [0_u8; 8]);
        let runs = [run(&mut a), run(&mut b)];
        // SAFETY: the runs are these two arrays, and nobody else uses them.
        unsafe {
            scatter(&block, &runs);
            gather(&mut back, &runs);
        }
        assert_eq!((a, b), ([0, 1, 2, 3, 4], [5, 6, 7]));
        assert_eq!(back, block[..]);
        back.fill(0);
        // SAFETY: as above.
        let checksum = unsafe { gather_summed(&mut back, &runs) };
        assert_eq!((&back[..], checksum), (&block[..], kv_core::payload_checksum(&block)));
    }
}
