//! The lightest clients that speak the protocols: requests are bytes that were made before, so that
//! the server is measured and not its client.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use lithe::inference::ModelInferRequest;
use lithe::inference::model_infer_request::InferInputTensor;
use lithe_worker::tensor::Tensor;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The protocols that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OIP v2 over gRPC.
    Grpc,
    /// OIP v2 over HTTP/1.1 with binary tensors.
    Rest,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With the outputs, whose bytes end the answer.
    Answered(Bytes),
    /// Turned away for want of capacity.
    Refused,
}

/// One request in the form of a protocol.
pub fn request(protocol: Protocol, inputs: &[(String, Tensor)]) -> Bytes {
    match protocol {
        Protocol::Grpc => grpc(inputs),
        Protocol::Rest => rest(inputs),
    }
}

fn grpc(inputs: &[(String, Tensor)]) -> Bytes {
    let message = ModelInferRequest {
        model_name: "m".into(),
        inputs: inputs
            .iter()
            .map(|(name, tensor)| InferInputTensor {
                name: name.clone(),
                datatype: tensor.datatype().name().into(),
                shape: tensor.shape().iter().map(|dim| *dim as i64).collect(),
                ..Default::default()
            })
            .collect(),
        raw_input_contents: inputs.iter().map(|(_, tensor)| tensor.data().clone()).collect(),
        ..Default::default()
    };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.encoded_len() as u32);
    framed.extend_from_slice(&message.encode_to_vec());
    framed.freeze()
}

fn rest(inputs: &[(String, Tensor)]) -> Bytes {
    let described: Vec<_> = inputs
        .iter()
        .map(|(name, tensor)| {
            serde_json::json!({
                "name": name, "datatype": tensor.datatype().name(), "shape": tensor.shape(),
                "parameters": {"binary_data_size": tensor.data().len()},
            })
        })
        .collect();
    let parameters = serde_json::json!({"binary_data_output": true});
    let json = serde_json::json!({"inputs": described, "parameters": parameters}).to_string();
    let binary: usize = inputs.iter().map(|(_, tensor)| tensor.data().len()).sum();
    let mut all = BytesMut::from(
        format!(
            "POST /v2/models/m/infer HTTP/1.1\r\nhost: m\r\ncontent-length: {}\r\n\
             inference-header-content-length: {}\r\n\r\n{json}",
            json.len() + binary,
            json.len()
        )
        .as_bytes(),
    );
    for (_, tensor) in inputs {
        all.extend_from_slice(tensor.data());
    }
    all.freeze()
}

/// A connection.
pub enum Client {
    /// Requests may overlap: clone it.
    Grpc(h2::client::SendRequest<Bytes>),
    /// One request after another.
    Rest(TcpStream, BytesMut),
}

impl Client {
    /// Connects to `address`.
    pub async fn connect(protocol: Protocol, address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(match protocol {
            Protocol::Rest => Self::Rest(stream, BytesMut::with_capacity(1 << 16)),
            Protocol::Grpc => {
                let (client, connection) = h2::client::Builder::new()
                    .initial_window_size(16 << 20)
                    .initial_connection_window_size(64 << 20)
                    .handshake(stream)
                    .await?;
                tokio::spawn(connection);
                Self::Grpc(client)
            }
        })
    }

    /// Sends `body`, which [`request`] made, and waits for the answer.
    pub async fn call(&mut self, body: &Bytes) -> Result<End> {
        match self {
            Self::Grpc(client) => call_grpc(client, body).await,
            Self::Rest(stream, buffer) => call_rest(stream, buffer, body).await,
        }
    }
}

async fn call_grpc(client: &mut h2::client::SendRequest<Bytes>, body: &Bytes) -> Result<End> {
    let head = Request::post("http://m/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut ready = client.clone().ready().await?;
    let (answer, mut stream) = ready.send_request(head, false)?;
    stream.send_data(body.clone(), true)?;
    let (head, mut body) = answer.await?.into_parts();
    let mut data = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        data.extend_from_slice(&part);
    }
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    match trailers.get("grpc-status").map(http::HeaderValue::as_bytes) {
        Some(b"0") => Ok(End::Answered(data.freeze())),
        Some(b"8") => Ok(End::Refused),
        _ => bail!("gRPC: {trailers:?}"),
    }
}

async fn call_rest(stream: &mut TcpStream, buffer: &mut BytesMut, body: &Bytes) -> Result<End> {
    stream.write_all(body).await?;
    buffer.clear();
    let (head, length) = loop {
        ensure!(stream.read_buf(buffer).await? > 0, "closed");
        let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(buffer.get(..head).unwrap_or_default())?;
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        break (head + 4, length.context("no content-length")?.parse::<usize>()?);
    };
    while buffer.len() < head + length {
        ensure!(stream.read_buf(buffer).await? > 0, "closed");
    }
    match buffer.get(9..12) {
        Some(b"200") => Ok(End::Answered(buffer.split_off(head).freeze())),
        Some(b"429") => Ok(End::Refused),
        _ => bail!("HTTP: {}", String::from_utf8_lossy(buffer)),
    }
}
