//! serde names a field only when it is missing or unknown; these name it when its value is wrong, too.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::NameServer;

fn named<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: &str, from: D) -> Result<T, D::Error> {
    T::deserialize(from).map_err(|error| D::Error::custom(format_args!("{field}: {error}")))
}

macro_rules! named_fields {
    ($($field:ident: $type:ty),* $(,)?) => {$(
        pub(super) fn $field<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
            named(stringify!($field), from)
        }
    )*};
}

named_fields! {
    session: String,
    include: Vec<IpNet>,
    exclude: Vec<IpNet>,
    exclude_ports: Vec<SocketAddr>,
    listener_v4: Option<u16>,
    listener_v6: Option<u16>,
    datagrams_v4: Option<u16>,
    datagrams_v6: Option<u16>,
    port_v4: Option<u16>,
    port_v6: Option<u16>,
    domains: Vec<String>,
    search: Vec<String>,
    servers: Vec<NameServer>,
}
