//! Where a source may lead: never to the machine itself, the link or a cloud's metadata service,
//! and to private networks only when the administrator says so. The address that was checked is
//! the address that is used, so that a second answer of the DNS changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::error::StoreError;

/// Whether sources may lie on private networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Public addresses only.
    Public,
    /// Private and loopback addresses too; the link and metadata services never.
    Private,
}

impl Reach {
    /// Why `address` must not be used; `None` when it may.
    pub fn refuses(self, address: IpAddr) -> Option<&'static str> {
        let address = address.to_canonical();
        let kind = match address {
            IpAddr::V4(v4) => kind4(v4),
            IpAddr::V6(v6) => kind6(v6),
        };
        match kind {
            Kind::Public => None,
            Kind::Private(_) if self == Self::Private => None,
            Kind::Private(what) | Kind::Never(what) => Some(what),
        }
    }
}

enum Kind {
    Public,
    Private(&'static str),
    Never(&'static str),
}

fn kind4(address: Ipv4Addr) -> Kind {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        _ if address.is_link_local() => Kind::Never("it is a link-local or metadata address"),
        // The metadata services of Oracle and Alibaba.
        (192, 0, 0) | (100, 100, 100) => Kind::Never("it is a metadata address"),
        _ if address.is_multicast() || address.is_broadcast() || a == 0 || a >= 240 => {
            Kind::Never("it is no host's address")
        }
        (127, ..) => Kind::Private("it is a loopback address"),
        (100, 64..=127, _) | (198, 18..=19, _) => Kind::Private("it is a private address"),
        _ if address.is_private() => Kind::Private("it is a private address"),
        _ => Kind::Public,
    }
}

fn kind6(address: Ipv6Addr) -> Kind {
    let segments = address.segments();
    match segments {
        // AWS answers for metadata here.
        [0xfd00, 0x0ec2, ..] => Kind::Never("it is a metadata address"),
        [first, ..] if first & 0xffc0 == 0xfe80 => Kind::Never("it is a link-local address"),
        _ if address.is_multicast() || address.is_unspecified() => {
            Kind::Never("it is no host's address")
        }
        _ if address.is_loopback() => Kind::Private("it is a loopback address"),
        [first, ..] if first & 0xfe00 == 0xfc00 => Kind::Private("it is a private address"),
        // An IPv4 address inside (NAT64, 6to4, IPv4-compatible) is judged as that address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => {
            kind4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        [0x2002, high, low, ..] => kind4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        _ => Kind::Public,
    }
}

/// The addresses of `host`, all of them checked.
///
/// # Errors
/// [`StoreError::Forbidden`] when any of them is refused, [`StoreError::Unavailable`] when there
/// are none.
pub async fn resolve(
    what: &str,
    host: &str,
    port: u16,
    reach: Reach,
) -> Result<Vec<SocketAddr>, StoreError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((bare, port)).await.map_err(|error| {
        StoreError::Unavailable { what: what.into(), why: format!("resolve {host}: {error}") }
    })?;
    let addresses: Vec<_> = found.collect();
    for address in &addresses {
        if let Some(why) = reach.refuses(address.ip()) {
            let why = format!("{host} is {}: {why}", address.ip());
            return Err(StoreError::Forbidden { what: what.into(), why });
        }
    }
    if addresses.is_empty() {
        let why = format!("{host} has no address");
        return Err(StoreError::Unavailable { what: what.into(), why });
    }
    Ok(addresses)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass_unless_private_ones_are_allowed() {
        // address, public only, private allowed
        for (address, public, private) in [
            ("93.184.216.34", true, true),
            ("2606:2800:220:1::1", true, true),
            ("10.0.0.1", false, true),
            ("172.16.0.1", false, true),
            ("192.168.1.1", false, true),
            ("100.64.0.1", false, true),
            ("127.0.0.1", false, true),
            ("::1", false, true),
            ("fd12::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("64:ff9b::7f00:1", false, true),
            ("2002:7f00:1::", false, true),
            ("169.254.169.254", false, false),
            ("::ffff:a9fe:a9fe", false, false),
            ("fe80::1", false, false),
            ("fd00:ec2::254", false, false),
            ("100.100.100.200", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
        ] {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(Reach::Public.refuses(ip).is_none(), public, "{address}");
            assert_eq!(Reach::Private.refuses(ip).is_none(), private, "{address} if private");
        }
    }

    #[tokio::test]
    async fn every_spelling_of_loopback_is_seen_through() {
        for uri in [
            "https://2130706433/x",
            "https://[::ffff:7f00:1]/x",
            "https://0x7f.1/x",
            "https://127。0。0。1/x",
        ] {
            let url = reqwest::Url::parse(uri).unwrap();
            let host = url.host_str().unwrap();
            let refused = resolve(uri, host, 443, Reach::Public).await.unwrap_err();
            assert_eq!(refused.reason(), lithe::names::reason::SOURCE_FORBIDDEN, "{uri}");
        }
    }
}
