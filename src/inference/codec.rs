//! The codec of the protocol: prost's, after a look at how many items a message lists.
//!
//! An empty item takes two bytes on the wire and hundreds in memory, so a message within its size
//! limit could still ask for gigabytes. Looking costs a few steps per item and copies nothing.

use std::marker::PhantomData;

use bytes::{Buf as _, Bytes};
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

mod listing;

/// Encodes like prost, decodes what lists a sane number of items.
#[derive(Clone, Debug)]
pub struct Capped<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Capped<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Capped<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
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

impl<U: Message + Name + Default> Decoder for CappedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        decode(buffer.copy_to_bytes(buffer.remaining())).map(Some)
    }
}

/// The message in `bytes`, after a look at how much it lists.
///
/// # Errors
/// `INVALID_ARGUMENT` when it lists too much or is no such message.
pub fn decode<U: Message + Name + Default>(bytes: Bytes) -> Result<U, Status> {
    if let Some(what) = listing::excess(U::PACKAGE, U::NAME, &bytes) {
        return Err(Status::invalid_argument(format!("the message lists more than {what}")));
    }
    U::decode(bytes)
        .map_err(|error| Status::invalid_argument(format!("the message cannot be read: {error}")))
}
