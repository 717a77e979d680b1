//! The forms that lines of nft and iptables may have: `T` is our table's name (`TB` and `TI` its chains of iptables), `A` an address or a
//! subnet, `N` a number, `W` a plain word; equal items of a list are one.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// Most lines that are remembered as good, so that a thread needs some megabytes only.
const REMEMBERED: usize = 50_000;

pub(super) const NFT: &[&str] = &[
    "create table inet T { flags owner; }",
    "delete table inet T",
    "add counter inet T untranslated",
    "add set inet T includeF { type ipvF_addr; flags interval; auto-merge; }",
    "add set inet T includeF { type ipvF_addr; flags interval; auto-merge; elements = { A }; }",
    "add set inet T excludeF { type ipvF_addr; flags interval; auto-merge; }",
    "add set inet T excludeF { type ipvF_addr; flags interval; auto-merge; elements = { A }; }",
    "add set inet T standingF { type ipvF_addr . inet_service . ipvF_addr . inet_service; flags dynamic; size 8192; \
     elements = { A . N . A . N }; }",
    "add map inet T dnsF { type ipvF_addr : inet_service; }",
    "add map inet T dnsF { type ipvF_addr : inet_service; elements = { A : N }; }",
    "flush map inet T dnsF",
    "add element inet T dnsF { A : N }",
    "add rule inet T OWN meta l4proto { tcp udp } th dport N meta skgid { N } return",
    "add chain inet T apart { type filter hook output priority -300; policy accept; }",
    "add rule inet T apart meta l4proto { tcp udp } th dport N meta skgid { N } ct original zone set N",
    "add rule inet T guard tcp dport N ct state established return",
    "add rule inet T capture meta nfproto ipvF udp dport N redirect to :IP daddr map @dnsF",
    "add rule inet T capture meta nfproto ipvF tcp dport N tcp flags & (syn | ack) == syn redirect to :IP daddr map @dnsF",
    "flush set inet T includeF",
    "flush set inet T excludeF",
    "add element inet T includeF { A }",
    "add element inet T excludeF { A }",
    "add element inet T standingF { A . N . A . N }",
    "add ct timeout inet T udpF { protocol udp; l3proto IP; policy = { unreplied : N replied : N }; }",
    "add chain inet T pin { type filter hook output priority -150; policy accept; }",
    "add rule inet T pin IP daddr @includeF meta l4proto udp ct timeout set W",
    "add chain inet T capture { type nat hook output priority -110; policy accept; }",
    "add chain inet T keep { type nat hook output priority -99; policy accept; }",
    "add chain inet T guard { type filter hook output priority 0; policy accept; }",
    "add chain inet T bridged { type nat hook prerouting priority -110; policy accept; }",
    "add chain inet T bridge_guard { type filter hook forward priority 0; policy accept; }",
    "flush chain inet T capture",
    "flush chain inet T bridged",
    "add rule inet T keep ct state established counter",
    "add rule inet T CHAIN fib daddr type { local broadcast multicast } return",
    "add rule inet T CHAIN IP daddr @excludeF return",
    "add rule inet T CHAIN IP daddr A return",
    "add rule inet T CHAIN meta l4proto { tcp udp } IP daddr . th dport { A . N } return",
    "add rule inet T OWN tcp flags & (syn | ack) == syn delete @standingF { IP saddr . tcp sport . IP daddr . tcp dport }",
    "add rule inet T OWN IP saddr . tcp sport . IP daddr . tcp dport @standingF return",
    "add rule inet T capture IP daddr @includeF meta l4proto PROTOCOL counter redirect to :N",
    "add rule inet T bridged iifname W IP saddr A IP daddr @includeF meta l4proto PROTOCOL counter redirect to :N",
    "add rule inet T GUARD ct direction reply return",
    "add rule inet T GUARD ct status dnat return",
    "add rule inet T bridge_guard ct state established return",
    "add rule inet T guard IP daddr @includeF meta l4proto PROTOCOLS counter name untranslated drop",
    "add rule inet T bridge_guard iifname W IP saddr A IP daddr @includeF meta l4proto PROTOCOLS counter name untranslated drop",
];

pub(super) const IPTABLES: &[&str] = &[
    "*raw",
    "*nat",
    "*filter",
    "COMMIT",
    ":CHAIN - [0:0]",
    "-I OUTPUT N -j T",
    "-I PREROUTING N -j TB",
    "-I FORWARD N -j TB",
    "-A OWN -m addrtype --dst-type KIND -j RETURN",
    "-A OWN -m conntrack --ctdir REPLY -j RETURN",
    "-A OWN -m conntrack --ctstate DNAT -j RETURN",
    "-A TB -m conntrack --ctstate ESTABLISHED -j RETURN",
    "-A OWN -d A -j RETURN",
    "-A OWN -d A -p tcp -m tcp --dport N -j RETURN",
    "-A OWN -d A -p udp -m udp --dport N -j RETURN",
    "-A T -s A -d A -p tcp -m tcp --sport N --dport N ! --tcp-flags SYN,ACK SYN -j RETURN",
    "-A T -p tcp -m tcp --dport N -m owner --gid-owner N -j RETURN",
    "-A T -p udp -m udp --dport N -m owner --gid-owner N -j RETURN",
    "-A T -p PROTOCOL -m PROTOCOL --dport N -m owner --gid-owner N -j CT --zone-orig N",
    "-A T -p tcp -m tcp --dport N -m conntrack --ctstate ESTABLISHED -j RETURN",
    "-A T -d A -p tcp -m tcp --dport N --tcp-flags SYN,ACK SYN -j REDIRECT --to-ports N",
    "-A T -d A -p udp -m udp --dport N -j REDIRECT --to-ports N",
    "-A T -j TI",
    "-A TI -d A -p PROTOCOL -j VERDICT",
    "-A TB -s A -i W -d A -p PROTOCOL -j VERDICT",
];

/// Words of [`NFT`] and of [`IPTABLES`] that stand for several.
const NFT_WORDS: &[(&str, &[&str])] = &[
    ("CHAIN", &["capture", "guard", "bridged", "bridge_guard"]),
    ("OWN", &["capture", "guard"]),
    ("GUARD", &["guard", "bridge_guard"]),
    ("PROTOCOLS", &["tcp", "{ tcp udp }"]),
    ("PROTOCOL", &["tcp", "udp"]),
];
const IPTABLES_WORDS: &[(&str, &[&str])] = &[
    ("CHAIN", &["T", "TB", "TI"]),
    ("OWN", &["T", "TB"]),
    ("KIND", &["LOCAL", "BROADCAST", "MULTICAST"]),
    ("PROTOCOL", &["tcp", "udp"]),
    ("VERDICT", &["DROP", "REDIRECT --to-ports N"]),
];

/// Whose connections, before what happens to them.
const NFT_WHO: &[&str] = &["meta skuid { N } ", "meta skgid { N } ", "socket cgroupv2 level N W "];
const IPTABLES_WHO: &[&str] = &["-m owner --uid-owner N ", "-m owner --gid-owner N ", "-m cgroup --path W "];

/// The lists, and lines that were compared with them before.
#[derive(Debug)]
pub(super) struct Forms {
    nft: HashSet<String>,
    iptables: HashSet<String>,
    good: HashSet<String>,
}

impl Default for Forms {
    fn default() -> Self {
        let families = |form: &&str| {
            [("ip", "4"), ("ip6", "6")].map(|(ip, family)| form.replace("IP", ip).replace('F', family))
        };
        let iptables = IPTABLES.iter().map(ToString::to_string);
        Self {
            nft: each(NFT.iter().flat_map(families), NFT_WORDS),
            iptables: each(iptables, IPTABLES_WORDS),
            good: HashSet::new(),
        }
    }
}

impl Forms {
    pub(super) fn nft(&mut self, line: &str) {
        if !self.good.contains(line) {
            assert!(self.is_nft(line), "{line:?} has the form {:?}", nft_form(line));
            self.remember(line);
        }
    }

    pub(super) fn iptables(&mut self, line: &str) {
        if !self.good.contains(line) {
            assert!(self.is_iptables(line), "{line:?} has the form {:?}", iptables_form(line));
            self.remember(line);
        }
    }

    pub(super) fn is_nft(&self, line: &str) -> bool {
        self.nft.contains(nft_form(line).as_str())
    }

    pub(super) fn is_iptables(&self, line: &str) -> bool {
        self.iptables.contains(iptables_form(line).as_str())
    }

    fn remember(&mut self, line: &str) {
        if self.good.len() == REMEMBERED {
            self.good.clear();
        }
        self.good.insert(line.to_owned());
    }
}

/// Every form with every word in place of those that stand for several.
fn each(forms: impl Iterator<Item = String>, words: &[(&str, &[&str])]) -> HashSet<String> {
    let mut all: Vec<String> = forms.collect();
    for (word, instead) in words {
        all = all.iter().flat_map(|form| instead.iter().map(|instead| form.replace(word, instead))).collect();
    }
    all.into_iter().collect()
}

/// The form without the conditions that say whose; they come in this order, before what is asked of the address.
fn without(form: &str, who: &[&str], begins: &[&str]) -> String {
    let Some(begin) = begins.iter().find(|begin| form.starts_with(**begin)) else { return form.to_owned() };
    let mut rest = &form[begin.len()..];
    for condition in who {
        rest = rest.strip_prefix(condition).unwrap_or(rest);
    }
    format!("{begin}{rest}")
}

fn nft_form(line: &str) -> String {
    let (mut form, mut item, mut previous) = (Vec::new(), 0, Vec::new());
    for word in line.split(' ') {
        let (word, comma) = word.strip_suffix(',').map_or((word, false), |word| (word, true));
        let opens = word == "{";
        let closes = word.starts_with('}');
        if !closes {
            form.push(reduced(word));
        }
        if comma || closes {
            let this = form.split_off(item);
            if this != previous {
                form.extend_from_slice(&this);
            }
            previous = this;
        }
        if closes {
            form.push(word);
        }
        if opens || closes {
            previous = Vec::new();
        }
        if opens || comma || closes {
            item = form.len();
        }
    }
    without(&form.join(" "), NFT_WHO, &["add rule inet T capture ", "add rule inet T guard "])
}

fn iptables_form(line: &str) -> String {
    let (mut form, mut interface) = (Vec::new(), false);
    for word in line.split(' ') {
        form.push(if interface && is_interface(word) { "W" } else { reduced(word) });
        interface = word == "-i";
    }
    without(&form.join(" "), IPTABLES_WHO, &["-A T "])
}

/// A name or a number as its letter, anything else as it is.
fn reduced(word: &str) -> &str {
    if let Some(quoted) = word.strip_prefix('"').and_then(|word| word.strip_suffix('"')) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@:/-".contains(&byte);
        return if !quoted.is_empty() && quoted.bytes().all(plain) { "W" } else { word };
    }
    if let Some(rest) = word.strip_prefix(':').filter(|rest| !rest.starts_with(':')) {
        return match reduced(rest) {
            "N" => ":N",
            "T" => ":T",
            "TB" => ":TB",
            "TI" => ":TI",
            _ => word,
        };
    }
    if let Some(name) = word.strip_prefix("kshuttle_") {
        let (name, letter) = match name.as_bytes().last() {
            Some(b'B') => (&name[..name.len() - 1], "TB"),
            Some(b'I') => (&name[..name.len() - 1], "TI"),
            _ => (name, "T"),
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        return if (1..=18).contains(&name.len()) && name.bytes().all(plain) { letter } else { word };
    }
    if !word.bytes().next().is_some_and(|first| first.is_ascii_hexdigit() || first == b':') {
        word
    } else if word.bytes().all(|byte| byte.is_ascii_digit()) && word.parse::<u32>().is_ok() {
        "N"
    } else if word.parse::<IpNet>().is_ok() || word.parse::<IpAddr>().is_ok() {
        "A"
    } else {
        word
    }
}

fn is_interface(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=15).contains(&word.len()) && !word.starts_with('-') && word.bytes().all(plain)
}
