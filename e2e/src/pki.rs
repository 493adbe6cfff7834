//! Keys, certificates and kubeconfigs of the embedded cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Who a certificate speaks for.
struct Identity<'a> {
    file: &'a str,
    name: &'a str,
    group: Option<&'a str>,
    addresses: &'a [&'a str],
}

/// Makes everything under `folder`, once; `server` is the API server's URL, `node` the node's IP.
pub fn make(folder: &Path, server: &str, node: &str, service: &str) -> Result<()> {
    if folder.join("finished").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "lithe-e2e");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?;
    std::fs::write(folder.join("ca.crt"), authority.pem())?;
    write_secret(&folder.join("ca.key"), &key.serialize_pem())?;
    let issuer = Issuer::new(params, key);

    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        node,
        service,
    ];
    let node_name = format!("system:node:{}", crate::cluster::NODE);
    let identities = [
        Identity { file: "apiserver", name: "kube-apiserver", group: None, addresses: &names },
        Identity {
            file: "etcd",
            name: "etcd",
            group: None,
            addresses: &["localhost", "127.0.0.1"],
        },
        Identity {
            file: "kubelet-client",
            name: "apiserver",
            group: Some("system:masters"),
            addresses: &[],
        },
        Identity {
            file: "admin",
            name: "lithe-e2e-admin",
            group: Some("system:masters"),
            addresses: &[],
        },
        Identity {
            file: "controllers",
            name: "system:kube-controller-manager",
            group: None,
            addresses: &[],
        },
        Identity { file: "scheduler", name: "system:kube-scheduler", group: None, addresses: &[] },
        Identity { file: "proxy", name: "system:kube-proxy", group: None, addresses: &[] },
        Identity {
            file: "kubelet",
            name: &node_name,
            group: Some("system:nodes"),
            addresses: &[node, crate::cluster::NODE],
        },
    ];
    for identity in &identities {
        issue(folder, identity, &issuer)?;
        kubeconfig(folder, identity.file, server)?;
    }
    let accounts = KeyPair::generate()?;
    write_secret(&folder.join("accounts.key"), &accounts.serialize_pem())?;
    std::fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;
    std::fs::write(folder.join("finished"), b"")?;
    Ok(())
}

fn issue(folder: &Path, identity: &Identity<'_>, issuer: &Issuer<'_, KeyPair>) -> Result<()> {
    let addresses: Vec<String> = identity.addresses.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(addresses)?;
    params.distinguished_name.push(DnType::CommonName, identity.name);
    if let Some(group) = identity.group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    std::fs::write(folder.join(format!("{}.crt", identity.file)), certificate.pem())?;
    write_secret(&folder.join(format!("{}.key", identity.file)), &key.serialize_pem())
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// The path of the kubeconfig of `identity`.
pub fn kubeconfig_path(folder: &Path, identity: &str) -> PathBuf {
    folder.join(format!("{identity}.kubeconfig"))
}

fn kubeconfig(folder: &Path, identity: &str, server: &str) -> Result<()> {
    let inline = |file: &str| -> Result<String> {
        Ok(base64::engine::general_purpose::STANDARD.encode(std::fs::read(folder.join(file))?))
    };
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lithe-e2e",
        "clusters": [{"name": "lithe-e2e", "cluster": {
            "server": server, "certificate-authority-data": inline("ca.crt")?,
        }}],
        "users": [{"name": identity, "user": {
            "client-certificate-data": inline(&format!("{identity}.crt"))?,
            "client-key-data": inline(&format!("{identity}.key"))?,
        }}],
        "contexts": [{"name": "lithe-e2e", "context": {"cluster": "lithe-e2e", "user": identity}}],
    });
    write_secret(&kubeconfig_path(folder, identity), &serde_yaml::to_string(&config)?)
}
