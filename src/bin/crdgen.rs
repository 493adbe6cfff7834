//! Prints the CustomResourceDefinition of ModelDeployment, as it stands in `crds/`.

use kube::CustomResourceExt as _;
use lithe::spec::ModelDeployment;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = serde_json::to_value(ModelDeployment::crd())?;
    println!("{}", serde_json::to_string_pretty(&text)?);
    Ok(())
}
