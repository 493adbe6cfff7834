//! Prints the CustomResourceDefinition of ModelDeployment, as it stands in `crds/`.

fn main() {
    print!("{}", lithe::spec::manifest());
}
