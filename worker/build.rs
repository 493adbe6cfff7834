//! Compiles the ONNX file format to Rust types, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "src/onnx/proto/onnx.proto";
    println!("cargo::rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["src/onnx/proto"])?;
    // Weights stay slices of the buffer they were read into.
    tonic_prost_build::configure().bytes(".onnx.TensorProto.raw_data").compile_fds(descriptors)?;
    Ok(())
}
