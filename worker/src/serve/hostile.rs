//! Broken requests of every form, by the thousand: whatever comes, a decoder answers with a tensor
//! or an error. The mutations are the same in every run.

use bytes::Bytes;
use lithe::artifact::TensorSignature;

use super::model::Signature;
use super::{decoders, element};

/// Mutations of each request.
const ROUNDS: usize = 1500;

/// Pieces that decoders are most likely to stumble over.
const PIECES: [&[u8]; 14] = [
    b"-1",
    b"18446744073709551615",
    b"9223372036854775807",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"\"",
    b"[[[[",
    b"{\"b64\":\"/w==\"}",
    b"null",
    b"\\u0000",
    b"\xff\xff\xff\xff\x0f",
    b"\x80",
    b"\0\0\0\0",
];

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    /// A number below `end`, which is at least one.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (end.max(1) as u64)).unwrap_or_default()
    }
}

/// `from` with a few changes.
fn broken(numbers: &mut Numbers, from: &[u8]) -> Vec<u8> {
    let mut out = from.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(out.len() + 1);
        let end = (at + numbers.below(9)).min(out.len());
        match numbers.below(4) {
            0 => {
                if let Some(byte) = out.get_mut(at) {
                    *byte ^= 1 << numbers.below(8);
                }
            }
            1 => drop(out.drain(at..end)),
            2 => {
                let piece = out.get(at..end).unwrap_or_default().to_vec();
                out.splice(at..at, piece);
            }
            _ => {
                let piece = PIECES.get(numbers.below(PIECES.len())).copied().unwrap_or_default();
                out.splice(at..at, piece.iter().copied());
            }
        }
    }
    out
}

/// Gives `decode` each request as it is and broken in many ways; how many it took.
fn all(requests: &[&[u8]], decode: impl Fn(&[u8]) -> bool) -> usize {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut taken = 0;
    for request in requests {
        assert!(decode(request), "{} is taken as it is", String::from_utf8_lossy(request));
        for _ in 0..ROUNDS {
            taken += usize::from(decode(&broken(&mut numbers, request)));
        }
    }
    taken
}

fn signature() -> Signature {
    let tensor = |name: &str, datatype: &str| TensorSignature {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![-1, -1],
    };
    Signature { inputs: vec![tensor("x", "FP32"), tensor("s", "BYTES")], outputs: Vec::new() }
}

#[test]
fn open_inference_json_and_binary() {
    let signature = signature();
    let json = br#"{"id":"1","parameters":{"timeout":5,"priority":1},"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[[1,NaN]]},{"name":"s","datatype":"BYTES","shape":[1],"data":["a"]}],"outputs":[{"name":"y","parameters":{"classification":2}}]}"#;
    let head = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}},{"name":"s","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}]}"#;
    let binary = [&head[..], &[0; 4], b"\x01\0\0\0a"].concat();
    let taken = all(&[json, &binary], |body| {
        let length = (!body.starts_with(b"{\"id\"")).then_some(head.len());
        decoders::open_inference_rest(length, &Bytes::copy_from_slice(body), &signature).is_ok()
    });
    assert!(taken > 0, "some changes do no harm");
}

#[test]
fn open_inference_messages() {
    // model_name, one input with a shape and typed contents, one output, and the same raw.
    let contents = b"\x32\x08\0\0\0\0\0\0\0\0";
    let typed = [b"\x0a\x01x\x12\x04FP32\x1a\x01\x02\x2a\x0a".as_slice(), contents].concat();
    let raw = b"\x0a\x01x\x12\x04FP32\x1a\x01\x02".as_slice();
    let wrap = |input: &[u8], rest: &[u8]| {
        [b"\x0a\x01m\x2a".as_slice(), &[input.len() as u8], input, rest].concat()
    };
    let typed = wrap(&typed, b"\x32\x03\x0a\x01y");
    let raw = wrap(raw, b"\x3a\x08\0\0\0\0\0\0\0\0");
    let decode = |body: &[u8]| decoders::open_inference_grpc(Bytes::copy_from_slice(body)).is_ok();
    assert!(all(&[&typed, &raw], decode) > 0);
}

#[test]
fn tensorflow_json() {
    let signature = signature();
    let requests: [&[u8]; 3] = [
        br#"{"instances":[{"x":[1,-Infinity],"s":["a",{"b64":"/w=="}]},{"s":["",""],"x":[3,4]}]}"#,
        br#"{"signature_name":"serving_default","inputs":{"x":[[1.5,2]],"s":[["a"]]}}"#,
        br#"{"examples":[{"x":[1,2.5],"s":"a"},{"x":[NaN,1],"s":{"b64":"YQ=="}}],"context":{"c":1}}"#,
    ];
    assert!(all(&requests, |body| decoders::tensorflow_rest(body, &signature).is_ok()) > 0);
}

#[test]
fn tensorflow_messages() {
    // inputs["x"]: DT_FLOAT of [2] in float_val; inputs["s"]: DT_STRING of [1].
    let x = b"\x0a\x01x\x12\x12\x08\x01\x12\x04\x12\x02\x08\x02\x2a\x08\0\0\0\0\0\0\0\0".as_slice();
    let s = b"\x0a\x01s\x12\x0b\x08\x07\x12\x04\x12\x02\x08\x01\x42\x01a".as_slice();
    let entry = |entry: &[u8]| [&[0x12, entry.len() as u8], entry].concat();
    let predict = [b"\x0a\x03\x0a\x01m".as_slice(), &entry(x), &entry(s)].concat();
    let signature = signature();
    let decode =
        |body: &[u8]| decoders::tensorflow_grpc(Bytes::copy_from_slice(body), &signature).is_ok();
    assert!(all(&[&predict], decode) > 0);
}

#[test]
fn words_that_json_lacks() {
    let json = br#"{"a":[NaN,-Infinity,"NaN \" Infinity"],"b":-1}"#;
    let taken = all(&[json], |body| element::words(body).len() <= body.len().saturating_mul(4));
    assert_eq!(taken, ROUNDS, "what is marked grows fourfold at most");
}
