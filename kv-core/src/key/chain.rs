//! Chained keys of blocks.

use super::{BlockKey, NamespaceSecret};
use crate::units::Tokens;

/// Something beside the tokens that changes a block's KV. Kinds never collide with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extra<'a> {
    /// The LoRA adapter in use: its name and revision, or a digest.
    Lora(&'a [u8]),
    /// A salt that the request asked for.
    Salt(&'a [u8]),
    /// An image, a sound or a video, part of which lies in the block.
    Media {
        /// Digest of the item.
        hash: &'a [u8],
        /// Where the item's first token lies, counted from the block's first; negative if it came before.
        start: i64,
    },
    /// Anything else: prompt embeddings, a draft model.
    Other(&'a [u8]),
}

/// The tokens are not one full block. Partial blocks have no key: what follows could still change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} tokens are not a block of {expected}; keep them until the block is full")]
pub struct PartialBlock {
    /// Tokens per block.
    pub expected: Tokens,
    /// Tokens given.
    pub found: usize,
}

/// What distinguishes the messages that are hashed under one key.
#[repr(u8)]
enum Domain {
    Tokens = 1,
    Foreign = 2,
}

/// Names the blocks of one KV group in one namespace.
///
/// A key depends on the parent's key, so on the whole prefix; on the tokens and their number; and on the
/// extras, their kinds and their order. The message hashed says how long each of its parts is, so no two
/// different inputs are the same message.
///
/// ```
/// use kv_core::key::{BlockKey, Extra, Fingerprint, Namespace, NamespaceSecret};
/// use kv_core::layout::GroupIndex;
/// use kv_core::units::Tokens;
///
/// let secret = NamespaceSecret::new([7; 32]); // from a random source, kept with the tenant
/// let acme = Namespace::new("acme", Fingerprint([1; 16]), &secret);
/// let chain = acme.chain(GroupIndex(0), Tokens(16));
///
/// let prompt: Vec<u32> = (0..40).collect();
/// let keys: Vec<_> = chain.keys(BlockKey::ROOT, &prompt, &[]).collect();
/// assert_eq!(keys.len(), 2); // the last 8 tokens are not a block yet
///
/// // Another question after the same first block: that block keeps its key.
/// let mut other = prompt.clone();
/// other[20] = 99;
/// let others: Vec<_> = chain.keys(BlockKey::ROOT, &other, &[]).collect();
/// assert_eq!(keys[0], others[0]);
/// assert_ne!(keys[1], others[1]);
///
/// // An adapter changes everything from the first block on.
/// let with_lora: Vec<_> =
///     chain.keys(BlockKey::ROOT, &prompt, &[Extra::Lora(b"sql-expert@3")]).collect();
/// assert_ne!(keys[0], with_lora[0]);
/// assert_ne!(keys[1], with_lora[1]);
///
/// // Media belong to the block in which they lie: name that block by itself.
/// let image = [Extra::Media { hash: b"digest of the image", start: 2 }];
/// let second = chain.key(keys[0], &prompt[16..32], &image)?;
/// assert_ne!(second, keys[1]);
/// # Ok::<(), kv_core::key::PartialBlock>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyChain {
    secret: NamespaceSecret,
    tokens_per_block: Tokens,
}

impl KeyChain {
    pub(super) const fn new(secret: NamespaceSecret, tokens_per_block: Tokens) -> Self {
        Self { secret, tokens_per_block }
    }

    /// Key of one full block that follows `parent`.
    ///
    /// # Errors
    /// There are fewer or more `tokens` than a block has.
    pub fn key(
        &self,
        parent: BlockKey,
        tokens: &[u32],
        extras: &[Extra<'_>],
    ) -> Result<BlockKey, PartialBlock> {
        let expected = self.tokens_per_block;
        if tokens.len() != expected.0 as usize || tokens.is_empty() {
            return Err(PartialBlock { expected, found: tokens.len() });
        }
        Ok(self.block(parent, tokens, extras, &mut Vec::new()))
    }

    /// Keys of the full blocks of `tokens`, the first of which follows `parent`. The extras go into the
    /// first block; as each key depends on the one before, they change all.
    pub fn keys(
        &self,
        parent: BlockKey,
        tokens: &[u32],
        extras: &[Extra<'_>],
    ) -> impl ExactSizeIterator<Item = BlockKey> {
        let mut message = Vec::new();
        let mut parent = parent;
        let mut extras = extras;
        // Blocks of no tokens: none rather than infinitely many.
        let tokens = if self.tokens_per_block.0 == 0 { &[] } else { tokens };
        tokens.chunks_exact(self.tokens_per_block.0.max(1) as usize).map(move |block| {
            parent = self.block(parent, block, extras, &mut message);
            extras = &[];
            parent
        })
    }

    /// Key of a block that a runtime names by a hash of its own, which must cover the whole prefix (as
    /// those of vLLM and SGLang do). The same hash gives the same key only in the same namespace and group.
    #[must_use]
    pub fn wrap_foreign(&self, hash: &[u8]) -> BlockKey {
        // The longest hash in use is vLLM's SHA-256 with a group index, 36 bytes: one BLAKE3 block.
        const INLINE: usize = 64;
        let mut inline = [0; INLINE];
        inline[0] = Domain::Foreign as u8;
        match inline.get_mut(1..=hash.len()) {
            Some(room) => {
                room.copy_from_slice(hash);
                self.finish(&inline[..=hash.len()])
            }
            None => self.finish(&[&[Domain::Foreign as u8], hash].concat()),
        }
    }

    /// Keys for the hash ids of a trace, which are cumulative over the prefix (Mooncake, Qwen-Bailian).
    pub fn wrap_hash_ids(&self, hash_ids: &[u64]) -> impl ExactSizeIterator<Item = BlockKey> {
        hash_ids.iter().map(|id| self.wrap_foreign(&id.to_le_bytes()))
    }

    fn block(
        &self,
        parent: BlockKey,
        tokens: &[u32],
        extras: &[Extra<'_>],
        message: &mut Vec<u8>,
    ) -> BlockKey {
        message.clear();
        message.reserve(1 + 16 + 8 + size_of_val(tokens));
        message.push(Domain::Tokens as u8);
        message.extend_from_slice(&parent.to_bytes());
        message.extend_from_slice(&(tokens.len() as u64).to_le_bytes());
        message.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        for extra in extras {
            let (kind, bytes) = match *extra {
                Extra::Lora(bytes) => (1u8, bytes),
                Extra::Salt(bytes) => (2, bytes),
                Extra::Media { hash, .. } => (3, hash),
                Extra::Other(bytes) => (4, bytes),
            };
            message.push(kind);
            if let Extra::Media { start, .. } = extra {
                message.extend_from_slice(&start.to_le_bytes());
            }
            message.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            message.extend_from_slice(bytes);
        }
        self.finish(message)
    }

    fn finish(&self, message: &[u8]) -> BlockKey {
        let key = BlockKey::from_bytes(super::first_half(&self.secret.hash(message)));
        // Happens once in 2^128 keys, but then it would be a root that names a block.
        if key == BlockKey::ROOT { BlockKey(1) } else { key }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::{Fingerprint, Namespace};
    use super::*;
    use crate::layout::GroupIndex;

    fn chain(per_block: u32) -> KeyChain {
        KeyChain::new(NamespaceSecret::new([3; 32]), Tokens(per_block))
    }

    fn keys(chain: &KeyChain, tokens: &[u32], extras: &[Extra<'_>]) -> Vec<BlockKey> {
        chain.keys(BlockKey::ROOT, tokens, extras).collect()
    }

    /// Kind, bytes and start of an [`Extra`].
    type Parts = (u8, Vec<u8>, i64);

    /// Extras made of pieces that are easily confused: few letters, short, empty.
    fn extra() -> impl Strategy<Value = Parts> {
        (0u8..4, vec(0u8..3, 0..4), -2i64..3)
    }

    fn as_extra((kind, bytes, start): &Parts) -> Extra<'_> {
        match kind {
            0 => Extra::Lora(bytes),
            1 => Extra::Salt(bytes),
            2 => Extra::Media { hash: bytes, start: *start },
            _ => Extra::Other(bytes),
        }
    }

    proptest! {
        #[test]
        fn keys_agree_exactly_on_the_common_prefix(
            (a, b, common) in (vec(0u32..3, 0..80), vec(0u32..3, 0..80), 0usize..80),
            per_block in 1u32..9,
        ) {
            let common = common.min(a.len()).min(b.len());
            let b = [&a[..common], &b[common..]].concat();
            let shared = a.iter().zip(&b).take_while(|(x, y)| x == y).count() / per_block as usize;
            let chain = chain(per_block);
            let (ka, kb) = (keys(&chain, &a, &[]), keys(&chain, &b, &[]));
            prop_assert_eq!(ka.len(), a.len() / per_block as usize);
            prop_assert_eq!(&ka[..shared], &kb[..shared]);
            prop_assert!(ka[shared..].iter().all(|key| !kb.contains(key)));
        }

        /// The extras of a prompt are those of its first block.
        #[test]
        fn one_call_or_many_give_the_same_keys(
            tokens in vec(any::<u32>(), 0..100),
            extras in vec(extra(), 0..3),
            cut in 0usize..12,
        ) {
            let chain = chain(8);
            let extras: Vec<_> = extras.iter().map(as_extra).collect();
            let all = keys(&chain, &tokens, &extras);
            let mut parent = BlockKey::ROOT;
            for (block, (tokens, &key)) in tokens.chunks_exact(8).zip(&all).enumerate() {
                parent = chain.key(parent, tokens, if block == 0 { &extras } else { &[] }).unwrap();
                prop_assert_eq!(parent, key);
            }
            if let Some(&parent) = all.get(cut) {
                let rest: Vec<_> = chain.keys(parent, &tokens[8 * (cut + 1)..], &[]).collect();
                prop_assert_eq!(&all[cut + 1..], rest);
            }
        }

        #[test]
        fn another_block_size_shares_no_key(tokens in vec(0u32..2, 1..60), a in 1u32..8, b in 1u32..8) {
            prop_assume!(a != b);
            let a: HashSet<_> = keys(&chain(a), &tokens, &[]).into_iter().collect();
            prop_assert!(keys(&chain(b), &tokens, &[]).iter().all(|key| !a.contains(key)));
        }

        #[test]
        fn different_extras_give_different_keys(a in vec(extra(), 0..4), b in vec(extra(), 0..4)) {
            let (a, b): (Vec<_>, Vec<_>) = (a.iter().map(as_extra).collect(), b.iter().map(as_extra).collect());
            let (ka, kb) = (keys(&chain(2), &[1, 2, 3, 4], &a), keys(&chain(2), &[1, 2, 3, 4], &b));
            prop_assert_eq!(a == b, ka[0] == kb[0]);
            prop_assert_eq!(a == b, ka[1] == kb[1]);
        }

        /// Extras that spell out tokens, and tokens that spell out extras, are still told apart.
        #[test]
        fn the_message_can_be_read_back(tokens in vec(0u32..2, 1..6), extras in vec(extra(), 0..3)) {
            let message_of = |tokens: &[u32], extras: &[Extra<'_>]| {
                let mut message = Vec::new();
                let _ = chain(1).block(BlockKey(5), tokens, extras, &mut message);
                message
            };
            let extras: Vec<_> = extras.iter().map(as_extra).collect();
            let message = message_of(&tokens, &extras);
            let (found_tokens, found_extras) = decode(&message);
            let found: Vec<_> = found_extras.iter().map(as_extra).collect();
            prop_assert_eq!(found_tokens, tokens);
            prop_assert_eq!(found, extras);
        }

        #[test]
        fn foreign_hashes_are_told_apart(a in vec(0u8..2, 0..100), b in vec(0u8..2, 0..100)) {
            let chain = chain(16);
            prop_assert_eq!(a == b, chain.wrap_foreign(&a) == chain.wrap_foreign(&b));
        }
    }

    /// Reads a message of [`KeyChain::block`]: that this can be written proves that no two inputs share one.
    fn decode(mut message: &[u8]) -> (Vec<u32>, Vec<Parts>) {
        fn take<const N: usize>(from: &mut &[u8]) -> [u8; N] {
            let (head, tail) = from.split_first_chunk::<N>().unwrap();
            *from = tail;
            *head
        }
        assert_eq!(take::<1>(&mut message), [Domain::Tokens as u8]);
        assert_eq!(BlockKey::from_bytes(take(&mut message)), BlockKey(5));
        let count = u64::from_le_bytes(take(&mut message));
        let tokens = (0..count).map(|_| u32::from_le_bytes(take(&mut message))).collect();
        let mut extras = Vec::new();
        while !message.is_empty() {
            let [kind] = take(&mut message);
            let start = if kind == 3 { i64::from_le_bytes(take(&mut message)) } else { 0 };
            let len = u64::from_le_bytes(take(&mut message)) as usize;
            extras.push((kind - 1, message[..len].to_vec(), start));
            message = &message[len..];
        }
        (tokens, extras)
    }

    #[test]
    fn order_of_tokens_matters() {
        assert_ne!(keys(&chain(2), &[1, 2], &[]), keys(&chain(2), &[2, 1], &[]));
        assert_ne!(keys(&chain(1), &[1, 2], &[])[1], keys(&chain(1), &[2, 1], &[])[1]);
    }

    #[test]
    fn partial_blocks_have_no_key() {
        let refused = |tokens: &[u32]| chain(4).key(BlockKey::ROOT, tokens, &[]).unwrap_err();
        assert_eq!(refused(&[1, 2, 3]), PartialBlock { expected: Tokens(4), found: 3 });
        assert_eq!(refused(&[1, 2, 3, 4, 5]), PartialBlock { expected: Tokens(4), found: 5 });
        assert!(keys(&chain(4), &[1, 2, 3], &[]).is_empty());
        assert!(keys(&chain(0), &[1, 2, 3], &[]).is_empty());
        assert!(chain(0).key(BlockKey::ROOT, &[], &[]).is_err());
    }

    #[test]
    fn whoever_asks_changes_every_key() {
        let mut seen = HashSet::new();
        for (tenant, fingerprint, secret, group) in
            [("a", 1, 1, 0), ("b", 1, 1, 0), ("a", 2, 1, 0), ("a", 1, 2, 0), ("a", 1, 1, 1)]
        {
            let secret = NamespaceSecret::new([secret; 32]);
            let namespace = Namespace::new(tenant, Fingerprint([fingerprint; 16]), &secret);
            let chain = namespace.chain(GroupIndex(group), Tokens(2));
            for key in keys(&chain, &[1, 2, 3, 4], &[]).into_iter().chain([chain.wrap_foreign(b"hash")]) {
                assert_ne!(key, BlockKey::ROOT);
                assert!(seen.insert(key), "{tenant} {fingerprint} {group}");
            }
        }
    }

    #[test]
    fn a_foreign_hash_is_not_a_block_of_tokens() {
        let chain = chain(1);
        let mut message = Vec::new();
        let key = chain.block(BlockKey::ROOT, &[7], &[], &mut message);
        assert_ne!(chain.wrap_foreign(&message), key);
        assert_ne!(chain.wrap_foreign(&message[1..]), key);
    }

    #[test]
    fn hash_ids_are_wrapped_one_by_one() {
        let chain = chain(512);
        let keys: Vec<_> = chain.wrap_hash_ids(&[46, u64::MAX]).collect();
        assert_eq!(keys, [chain.wrap_foreign(&46u64.to_le_bytes()), chain.wrap_foreign(&[0xff; 8])]);
    }

    /// Records and routers remember keys, so another value would orphan every stored block. The values are
    /// those of another BLAKE3 (Python's `blake3`) over messages put together by hand.
    #[test]
    fn keys_are_stable() {
        let namespace = Namespace::new("acme", Fingerprint([1; 16]), &NamespaceSecret::new([2; 32]));
        let chain = namespace.chain(GroupIndex(0), Tokens(2));
        let key = chain.key(BlockKey::ROOT, &[1, 2], &[Extra::Salt(b"s")]).unwrap();
        let hex = |key: BlockKey| key.to_bytes().map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(namespace.id().to_string(), "b260c293d3c8c1566b4a784f1e30424a");
        assert_eq!(hex(key), "ed3e8173a005a6c885b3af61cb0b4037");
        assert_eq!(hex(chain.wrap_foreign(b"hash")), "97c7455a2d976a510bc2ab1e14e9253e");
    }
}
