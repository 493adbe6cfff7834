//! An artifact as a CNCF ModelPack: which layers it has, and which of them is the model.

use std::collections::BTreeMap;

use lithe::artifact::{
    FILEPATH_ANNOTATION, MANIFEST_FILE, MODEL_ARTIFACT_TYPE, MODEL_CONFIG_MEDIA_TYPE,
    MODEL_DOC_MEDIA_TYPE, MODEL_FILE, MODEL_WEIGHT_MEDIA_TYPE, Manifest, REPORT_MEDIA_TYPE,
};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use serde_json::json;

/// The file name annotation of other tools that write artifacts.
const TITLE_ANNOTATION: &str = "org.opencontainers.image.title";

/// The blobs of one artifact.
pub struct Pack {
    /// The image manifest.
    pub manifest: OciImageManifest,
    /// The bytes of the configuration.
    pub config: Vec<u8>,
}

fn descriptor(
    media_type: &str,
    digest: &lithe::Digest,
    size: usize,
    file: Option<&str>,
) -> OciDescriptor {
    let annotation =
        |file: &str| BTreeMap::from([(FILEPATH_ANNOTATION.to_owned(), file.to_owned())]);
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        annotations: file.map(annotation),
        ..OciDescriptor::default()
    }
}

/// The artifact of `manifest`, whose JSON is `json`. The same input gives the same bytes.
pub fn pack(name: &str, manifest: &Manifest, json: &[u8]) -> Pack {
    let model = &manifest.model;
    let size = usize::try_from(model.size).unwrap_or(usize::MAX);
    let document = lithe::Digest::of(json);
    let precision =
        manifest.steps.iter().rev().find_map(|step| step.name.strip_prefix("quantize."));
    let mut parameters = json!({"format": "onnx"});
    if let (Some(quantization), Some(object)) = (precision, parameters.as_object_mut()) {
        object.insert("quantization".into(), quantization.into());
    }
    let mut digests = vec![&model.digest, &document];
    digests.extend(manifest.report.as_ref().map(|report| &report.digest));
    let config = json!({
        "descriptor": {"name": name, "revision": manifest.key, "vendor": "lithe"},
        "config": parameters,
        "modelfs": {"type": "layers", "diffIds": digests},
    })
    .to_string()
    .into_bytes();
    let mut layers = vec![
        descriptor(MODEL_WEIGHT_MEDIA_TYPE, &model.digest, size, Some(MODEL_FILE)),
        descriptor(MODEL_DOC_MEDIA_TYPE, &document, json.len(), Some(MANIFEST_FILE)),
    ];
    layers.extend(manifest.report.as_ref().map(|report| {
        let size = usize::try_from(report.size).unwrap_or(usize::MAX);
        descriptor(REPORT_MEDIA_TYPE, &report.digest, size, Some(&report.name))
    }));
    let manifest = OciImageManifest {
        schema_version: 2,
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        config: descriptor(
            MODEL_CONFIG_MEDIA_TYPE,
            &lithe::Digest::of(&config),
            config.len(),
            None,
        ),
        layers,
        subject: None,
        artifact_type: Some(MODEL_ARTIFACT_TYPE.to_owned()),
        annotations: None,
    };
    Pack { manifest, config }
}

/// The layer with the file `name`.
pub fn layer<'a>(manifest: &'a OciImageManifest, name: &str) -> Option<&'a OciDescriptor> {
    manifest.layers.iter().find(|layer| file(layer) == Some(name))
}

fn file(layer: &OciDescriptor) -> Option<&str> {
    let annotations = layer.annotations.as_ref()?;
    let name = annotations.get(FILEPATH_ANNOTATION).or_else(|| annotations.get(TITLE_ANNOTATION));
    name.map(String::as_str)
}

/// The layer that is the model: the only layer, the only weight layer, or the only one whose file
/// ends with `.onnx`.
///
/// # Errors
/// What the artifact has instead.
pub fn model_layer(manifest: &OciImageManifest) -> Result<&OciDescriptor, String> {
    let layers = || manifest.layers.iter();
    let only = |found: Vec<&'_ OciDescriptor>| match found.as_slice() {
        [layer] => Some(layer.digest.clone()),
        _ => None,
    };
    let weight = |layer: &&OciDescriptor| layer.media_type.contains(".weight.");
    let onnx = |layer: &&OciDescriptor| file(layer).is_some_and(|name| name.ends_with(".onnx"));
    let found = only(layers().collect())
        .or_else(|| only(layers().filter(weight).collect()))
        .or_else(|| only(layers().filter(onnx).collect()))
        .and_then(|digest| layers().find(|layer| layer.digest == digest));
    let layer = found.ok_or_else(|| {
        format!(
            "want one layer, one ModelPack weight layer or one .onnx file, it has {} layers",
            manifest.layers.len()
        )
    })?;
    let packed = ["tar", "gzip", "zstd"].iter().any(|kind| layer.media_type.contains(kind));
    if packed {
        return Err(format!(
            "its model is packed as {}: want the file as it is (raw)",
            layer.media_type
        ));
    }
    Ok(layer)
}
