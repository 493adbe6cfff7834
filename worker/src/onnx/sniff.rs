//! Names what a file is when it is not an ONNX model, from its first bytes.

use lithe::names::reason;

use super::refusal::{Refusal, quoted_bytes};

/// Magic numbers: (offset, bytes, what it is, what to do).
const FORMATS: [(usize, &[u8], &str, &str); 16] = [
    (4, b"ORTM", "an ORT flatbuffer (.ort)", "export it as .onnx"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX"),
    (0, b"PK\x03\x04", "a zip archive (PyTorch .pt, Keras, MAR, NumPy .npz)", "export it to ONNX"),
    (0, b"\x80\x02", "a Python pickle (PyTorch .pt, .pkl)", "export it to ONNX"),
    (0, b"\x80\x03", "a Python pickle (.pkl)", "export it to ONNX"),
    (0, b"\x80\x04", "a Python pickle (.pkl)", "export it to ONNX"),
    (0, b"\x80\x05", "a Python pickle (.pkl)", "export it to ONNX"),
    (0, b"ptrt", "a TensorRT engine", "give the ONNX model it was built from"),
    (0, b"ftrt", "a TensorRT engine", "give the ONNX model it was built from"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras .h5)", "export it to ONNX"),
    (0, b"GGUF", "a GGUF model", "give the ONNX model it was made from"),
    (0, b"\x93NUMPY", "a NumPy array", "give a model"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it"),
    (0, b"BZh", "a bzip2 archive", "unpack it"),
    (257, b"ustar", "a tar archive (MAR, NeMo)", "unpack it"),
];

/// The bytes that [`sniff`] wants to see.
pub const HEAD: usize = 512;

/// Refuses a file whose first bytes (at most [`HEAD`]) belong to something else than ONNX.
pub fn sniff(head: &[u8], size: u64) -> Result<(), Refusal> {
    if size == 0 {
        return Err(Refusal::corrupt("the model file is empty"));
    }
    let seen = quoted_bytes(head);
    let format = FORMATS
        .iter()
        .find(|(at, magic, ..)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    if let Some((_, _, what, mend)) = format {
        let message = format!("the file is {what}, not ONNX: it begins with {seen}; {mend}");
        return Err(Refusal::new(reason::UNSUPPORTED_FORMAT, message));
    }
    if is_safetensors(head) {
        let message = format!("the file is a safetensors archive, not ONNX: it begins with {seen}");
        return Err(Refusal::new(reason::UNSUPPORTED_FORMAT, message));
    }
    let text = head.trim_ascii_start();
    let lower: Vec<u8> = text.iter().take(16).map(u8::to_ascii_lowercase).collect();
    if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") || lower.starts_with(b"<?xml")
    {
        let what =
            "the file is a web page or XML, not ONNX (often an error page saved as the model)";
        return Err(Refusal::corrupt(format!("{what}: it begins with {seen}")));
    }
    if text.starts_with(b"version https://git-lfs") {
        let what = "the file is a Git LFS pointer, not the model it points to";
        return Err(Refusal::corrupt(format!("{what}: it begins with {seen}")));
    }
    if text.starts_with(b"{\"") || text.starts_with(b"{\n") {
        return Err(Refusal::corrupt(format!("the file is JSON, not ONNX: it begins with {seen}")));
    }
    Ok(())
}

/// A safetensors file begins with the 8-byte length of a JSON object.
fn is_safetensors(head: &[u8]) -> bool {
    head.get(5..10) == Some(b"\0\0\0{\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_called_by_its_name() {
        for (at, magic, what, _) in FORMATS {
            let mut file = vec![b'a'; at];
            file.extend_from_slice(magic);
            let refusal = sniff(&file, 1000).unwrap_err();
            assert_eq!(refusal.reason, reason::UNSUPPORTED_FORMAT);
            assert!(refusal.message.contains(what), "{refusal}");
        }
    }

    #[test]
    fn an_error_page_is_quoted() {
        let refusal = sniff(b"\n<!DOCTYPE html>\n<html>", 100).unwrap_err();
        assert_eq!(refusal.reason, reason::CORRUPT);
        assert!(refusal.message.contains("<!DOCTYPE html>"), "{refusal}");
        assert!(!refusal.message.contains('\n'));
    }

    #[test]
    fn a_model_passes() {
        assert_eq!(sniff(b"\x08\x08\x12\x07pytorch", 10), Ok(()));
    }
}
