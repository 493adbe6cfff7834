//! The codec of the protocol: prost's, after a look at how many items a message lists.
//!
//! An empty item takes two bytes on the wire and hundreds in memory, so a message within its size
//! limit could still ask for gigabytes. Looking costs a few steps per item and copies nothing.

use std::marker::PhantomData;

use bytes::{Buf as _, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

/// Inputs, outputs, parameters and contents in one message: far more than any model has.
const ITEMS: usize = 4096;
/// Strings in one message: 32 MiB of references to them.
const STRINGS: usize = 1 << 20;

/// Encodes like prost, decodes what lists a sane number of items.
#[derive(Clone, Debug)]
pub struct Capped<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Capped<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for Capped<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CappedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CappedDecoder(PhantomData)
    }
}

/// The decoding half of [`Capped`].
#[derive(Clone, Debug)]
pub struct CappedDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for CappedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        if let Some(what) = excess(&message) {
            return Err(Status::invalid_argument(format!("the message lists more than {what}")));
        }
        let broken =
            |error| Status::invalid_argument(format!("the message cannot be read: {error}"));
        U::decode(message).map(Some).map_err(broken)
    }
}

/// What a message has too many of.
fn excess(message: &Bytes) -> Option<String> {
    let (mut items, mut strings) = (0, 0);
    for (number, input) in fields(message) {
        items += 1;
        // ModelInferRequest.inputs
        if number == 5 {
            for (number, contents) in fields(input) {
                match number {
                    // InferInputTensor.parameters
                    4 => items += 1,
                    // InferInputTensor.contents, of which bytes_contents are strings
                    5 => strings += fields(contents).filter(|(number, _)| *number == 8).count(),
                    _ => {}
                }
            }
        }
        if items > ITEMS {
            return Some(format!("{ITEMS} items"));
        }
        if strings > STRINGS {
            return Some(format!("{STRINGS} strings"));
        }
    }
    None
}

/// The length-delimited fields of `message`: number and content. Ends where the message breaks;
/// prost says why.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut message)?;
            match key & 7 {
                0 => {
                    varint(&mut message)?;
                }
                1 => message = message.get(8..)?,
                5 => message = message.get(4..)?,
                2 => {
                    let length = usize::try_from(varint(&mut message)?).ok()?;
                    let (content, rest) = message.split_at_checked(length)?;
                    message = rest;
                    return Some((key >> 3, content));
                }
                _ => return None,
            }
        }
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use super::super::{InferTensorContents, ModelInferRequest};
    use super::*;

    fn look(message: ModelInferRequest) -> Option<String> {
        excess(&message.encode_to_vec().into())
    }

    #[test]
    fn a_message_that_lists_too_much_is_seen_before_it_is_decoded() {
        let strings = |count| InferInputTensor {
            contents: Some(InferTensorContents {
                bytes_contents: vec![Bytes::new(); count],
                ..Default::default()
            }),
            ..Default::default()
        };
        let sane = ModelInferRequest {
            inputs: vec![strings(1000); 8],
            outputs: vec![InferRequestedOutputTensor::default(); 8],
            raw_input_contents: vec![Bytes::from_static(&[0x2a; 1000]); 8],
            ..Default::default()
        };
        assert_eq!(look(sane), None);
        let inputs = ModelInferRequest {
            inputs: vec![InferInputTensor::default(); 100_000],
            ..Default::default()
        };
        assert_eq!(look(inputs).as_deref(), Some("4096 items"));
        let many = ModelInferRequest { inputs: vec![strings(STRINGS + 1)], ..Default::default() };
        assert_eq!(look(many).as_deref(), Some("1048576 strings"));
        assert_eq!(excess(&Bytes::from_static(&[0x2a, 0xff, 0xff])), None);
    }
}
