use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
}

/// Normal data by the central limit, which is close enough to have the exponents of normal data.
fn normal(n: usize) -> impl Iterator<Item = f32> {
    let mut next = random(n as u64);
    (0..n).map(move |_| (0..12).map(|_| (next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0)
}

fn bytes_of(elements: Elements, n: usize) -> Vec<u8> {
    let e5m2 = |x| (f16::from_f32(x).to_bits() >> 8) as u8;
    // Seven more in the exponent than bf16 has after its shift: enough for a test, no rounding, no subnormals.
    let e4m3 = |x: f32| {
        let bits = x.clamp(-16.0, 16.0).to_bits();
        let exponent = ((bits >> 23 & 0xFF) as i32 - 127 + 7).clamp(0, 15) as u32;
        (bits >> 24 & 0x80 | exponent << 3 | bits >> 20 & 7) as u8
    };
    match elements {
        Elements::Bf16 => normal(n).flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        Elements::F16 => normal(n).flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        Elements::Fp8E4M3 => normal(n).map(e4m3).collect(),
        Elements::Fp8E5M2 => normal(n).map(e5m2).collect(),
    }
}

/// Encodes with every version, compares them, decodes with every version in segments of this size.
fn round_trip(elements: Elements, payload: &[u8], segment: usize) -> Option<f64> {
    let mut encoded = Vec::new();
    let done = Codec::PORTABLE.encode(elements, payload, &mut encoded);
    for codec in Codec::available() {
        let mut again = b"before".to_vec();
        assert_eq!(codec.encode(elements, payload, &mut again), done, "{}", codec.name());
        assert!(
            again == [b"before", &encoded[..]].concat(),
            "{} encodes {elements:?} differently",
            codec.name()
        );
        if done {
            let mut decoded = vec![0xEE; payload.len()];
            let segments: Vec<_> = encoded.chunks(segment).collect();
            assert_eq!(codec.decode(elements, &segments, &mut decoded), Ok(()), "{}", codec.name());
            assert!(decoded == payload, "{} decodes {elements:?} differently", codec.name());
        }
    }
    assert!(encoded.len() as f64 <= payload.len() as f64 / LEAST_RATIO);
    done.then(|| payload.len() as f64 / encoded.len() as f64)
}

#[test]
fn normal_data_shrinks_as_far_as_its_entropy_lets_it() {
    // Shannon: 16/10.5, 16/13.5, 8/6.4, 8/5.5 for a normal distribution.
    for (elements, least, most) in [
        (Elements::Bf16, 1.48, 1.53),
        (Elements::F16, 1.17, 1.20),
        (Elements::Fp8E4M3, 1.20, 1.27),
        (Elements::Fp8E5M2, 1.40, 1.47),
    ] {
        let ratio = round_trip(elements, &bytes_of(elements, 3 * PIECE + 77), 1 << 20).unwrap();
        assert!((least..most).contains(&ratio), "{elements:?}: {ratio}");
    }
}

#[test]
fn every_length_and_every_segment_comes_back() {
    for elements in Elements::ALL {
        for n in (1..200).chain([PIECE - 1, PIECE, PIECE + 1, PIECE + 65]) {
            round_trip(elements, &bytes_of(elements, n), 1 << 20);
        }
        let payload = bytes_of(elements, PIECE + 1000);
        for segment in [1, 7, 4096, 40_000] {
            assert!(round_trip(elements, &payload, segment).is_some());
        }
    }
}

#[test]
fn what_does_not_shrink_is_left_alone() {
    let mut next = random(1);
    let noise: Vec<u8> = (0..40_000).flat_map(|_| next().to_le_bytes()).collect();
    for elements in Elements::ALL {
        assert_eq!(round_trip(elements, &noise, 4096), None);
        assert_eq!(round_trip(elements, &[], 4096), None);
        // Noise that a sample does not see.
        let mut late = bytes_of(elements, 20 * PIECE);
        let from = PIECE * elements.bytes();
        late.chunks_mut(from).for_each(|piece| {
            piece[from / 8..].iter_mut().for_each(|byte| *byte = next() as u8);
        });
        assert_eq!(round_trip(elements, &late, 4096), None);
    }
    assert_eq!(round_trip(Elements::Bf16, &[1; 4097], 4096), None, "half an element");
}

#[test]
fn equal_elements_take_no_room_and_noise_is_raw_beside_them() {
    for elements in Elements::ALL {
        assert!(round_trip(elements, &vec![0; 1 << 20], 4096).unwrap() > 3000.0);
        assert!(round_trip(elements, &[0x12, 0x34].repeat(1 << 17), 4096).is_some());
        let mut next = random(2);
        let noise = (0..PIECE * elements.bytes()).map(|_| next() as u8);
        let half: Vec<u8> = noise.chain(vec![7; PIECE * elements.bytes()]).collect();
        let ratio = round_trip(elements, &half, 4096).unwrap();
        assert!((1.99..2.0).contains(&ratio), "{ratio}");
    }
}

/// Which values are frequent differs from piece to piece, and some values have no level.
#[test]
fn values_without_a_level_and_every_exponent_come_back() {
    for elements in Elements::ALL {
        let mut payload = bytes_of(elements, 2 * PIECE);
        for (i, byte) in payload.iter_mut().enumerate().filter(|(i, _)| i % 23 == 0) {
            *byte = (i / 23) as u8;
        }
        assert!(round_trip(elements, &payload, 4096).is_some());
    }
}

/// What any damage does: an error, or a payload that the checksum of its record will refuse; the same with every
/// version. Reads and writes outside are found by `make asan`.
fn same_everywhere(elements: Elements, encoded: &[u8], n: usize) -> Result<Vec<u8>, Damaged> {
    let decode = |codec: Codec| {
        let mut decoded = vec![0; n];
        codec.decode(elements, &[encoded], &mut decoded).map(|()| decoded)
    };
    let expected = decode(Codec::PORTABLE);
    for codec in Codec::available() {
        assert_eq!(decode(codec), expected, "{}", codec.name());
    }
    expected
}

#[test]
fn every_flipped_bit_and_every_cut_is_an_error_or_another_payload() {
    for elements in Elements::ALL {
        let payload = bytes_of(elements, 633);
        let mut encoded = Vec::new();
        assert!(Codec::PORTABLE.encode(elements, &payload, &mut encoded));
        assert_eq!(same_everywhere(elements, &encoded, payload.len()), Ok(payload.clone()));
        // A value that occurs nowhere may change unnoticed: the last level need not use all three.
        let values = HEAD..HEAD + 3 * usize::from(encoded[1]);
        for bit in 0..encoded.len() * 8 {
            encoded[bit / 8] ^= 1 << (bit % 8);
            match same_everywhere(elements, &encoded, payload.len()) {
                Err(Damaged) => {}
                Ok(decoded) => {
                    assert!(bit / 8 >= HEAD, "head, bit {bit}");
                    assert!(values.contains(&(bit / 8)) || decoded != payload, "{elements:?}, bit {bit}");
                }
            }
            encoded[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..encoded.len() {
            assert_eq!(same_everywhere(elements, &encoded[..len], payload.len()), Err(Damaged));
        }
        let long = [&encoded[..], &[0]].concat();
        assert_eq!(same_everywhere(elements, &long, payload.len()), Err(Damaged));
        for n in [0, 1, 500, 700, 1 << 20] {
            assert_eq!(same_everywhere(elements, &encoded, n * elements.bytes()), Err(Damaged), "{n}");
        }
    }
}

fn elements() -> impl Strategy<Value = Elements> {
    prop::sample::select(Elements::ALL.to_vec())
}

proptest! {
    #[test]
    fn any_bytes_come_back(elements in elements(), payload: Vec<u8>, repeat in 1_usize..200, segment in 1_usize..500) {
        round_trip(elements, &payload.repeat(repeat), segment);
    }

    #[test]
    fn few_values_come_back(
        elements in elements(),
        payload in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 7, 8, 0x3F, 0x40, 0xBF, 0xFF]), 0..5000),
    ) {
        round_trip(elements, &payload, 100);
    }

    /// With a head that lets them be looked at.
    #[test]
    fn hostile_bytes_do_the_same_everywhere(
        elements in elements(),
        (levels, body) in (0_u8..10, prop::collection::vec(any::<u8>(), 0..3000)),
        n in 0_usize..4000,
        sparse: bool,
    ) {
        // Few bits let every level fit.
        let body: Vec<u8> = if sparse { body.iter().map(|b| b & b >> 1 & b >> 2).collect() } else { body };
        let method = if levels == 0 { Method::Fill } else { Method::Levels };
        let head = Head { method, levels: levels.into(), body: body.len() };
        same_everywhere(elements, &[&head.to_bytes()[..], &body].concat(), n).ok();
    }
}
