//! Proxies that are no part of the mesh, and that an operator says may be believed.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// The networks whose hosts are believed when they tell a client's address. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Arc<[IpNet]>);

impl Proxies {
    /// Of networks, such as 10.0.0.0/8, and single addresses; or the first one that is neither.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let network = |text: &'a str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| text);
        Ok(Self(list.into_iter().map(network).collect::<Result<Vec<_>, _>>()?.into()))
    }

    /// Whether this address is one of them.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}
