//! Compiles the inference protocols' messages when the feature `grpc` asks for them; no `protoc`.

use std::path::PathBuf;

/// The protocols: the file of each, and the name of its descriptors.
const PROTOCOLS: [(&str, &str); 2] =
    [("open_inference.proto", "inference.bin"), ("tensorflow_serving.proto", "tensorflow.bin")];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/protos");
    if std::env::var_os("CARGO_FEATURE_GRPC").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut all = protox::Compiler::new(["src/protos"])?;
    for (file, descriptors) in PROTOCOLS {
        // Each by itself: reflection tells of the protocols that are served, and of no other.
        let mut one = protox::Compiler::new(["src/protos"])?;
        one.include_imports(true).open_file(file)?;
        std::fs::write(out.join(descriptors), one.encode_file_descriptor_set())?;
        all.include_imports(true).open_file(file)?;
    }
    let mut config = tonic_prost_build::Config::new();
    // The codec looks up by name what a message may list.
    config.enable_type_names();
    tonic_prost_build::configure()
        .codec_path("crate::inference::codec::Capped")
        // Tensors stay slices of the message they came in.
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .bytes(".inference.InferTensorContents.bytes_contents")
        .bytes(".tensorflow.TensorProto.tensor_content")
        .bytes(".tensorflow.TensorProto.string_val")
        .bytes(".tensorflow.BytesList.value")
        .compile_fds_with_config(all.file_descriptor_set(), config)?;
    Ok(())
}
