//! The messages: frames with objects that look like the protocol's, spoiled here and there.

use crate::protocol::MAX_FRAME;

/// One leaf of so many is replaced.
const SPOILED: u64 = 8;

/// Words that would do harm if they came through, and values of wrong kinds, as JSON.
const HOSTILE: &[&str] = &[
    r#""; flush ruleset""#,
    r#""10.0.0.0/8; flush ruleset""#,
    r#""10.0.0.0/8\nflush ruleset""#,
    r#""10.0.0.0/8 }; flush ruleset; #""#,
    r#""a\" accept; flush ruleset; \"""#,
    r#""a\nCOMMIT\n*filter\n-F""#,
    r#""\"""#,
    r#""'""#,
    r#""$(reboot)""#,
    r#""`reboot`""#,
    r#""../../etc/passwd""#,
    r#""/etc/passwd""#,
    r#""a b""#,
    r#""-j""#,
    r#""--help""#,
    r#""kshuttle_a""#,
    r#""\u0000""#,
    r#""\ud800""#,
    r#""ä""#,
    r#""A""#,
    r#""fe80::1%lo""#,
    r#""0.0.0.0/0""#,
    r#""::/0""#,
    r#""127.0.0.1/8""#,
    r#""::ffff:10.0.0.1""#,
    r#""10.0.0.0/33""#,
    r#""010.0.0.1""#,
    r#""10.0.0.1:99999""#,
    r#""""#,
    "0",
    "-1",
    "65536",
    "4294967296",
    "18446744073709551616",
    "1e999",
    "0.5",
    "null",
    "true",
    "[]",
    "{}",
    "[[[[[[[[[[]]]]]]]]]]",
    r#"{"a":{"a":{"a":{"a":[]}}}}"#,
    r#"["; flush ruleset"]"#,
    r#"{"$date":0}"#,
];

/// An endless, repeatable series.
pub(super) struct Messages {
    state: u64,
    text: String,
}

impl Messages {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) + 1, text: String::new() }
    }

    /// The next one, as it would come over the socket.
    pub(super) fn next(&mut self) -> Vec<u8> {
        self.text.clear();
        match self.below(44) {
            0 => self.nested(),
            1..=6 => self.update(),
            7 => self.origin(),
            8 => self.text += r#"{"type":"stop"}"#,
            9..=10 => self.names(),
            11 => self.sockets(),

            _ => self.plan(),
        }
        let mut body = std::mem::take(&mut self.text).into_bytes();
        if self.one_in(5) {
            (0..=self.below(3)).for_each(|_| self.flip(&mut body));
        }
        let length = match self.below(100) {
            0 => self.below(body.len() as u64 + 8),
            1 => self.below(MAX_FRAME as u64 * 2),
            _ => body.len() as u64,
        };
        let mut frame = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        frame.append(&mut body);
        frame
    }

    fn plan(&mut self) {
        let kind = if self.one_in(SPOILED) { self.pick(HOSTILE) } else { r#""plan""# };
        self.text += &format!(r#"{{"type":{kind}"#);
        let mut fields: Vec<u64> = (0..12).filter(|field| *field < 4 || self.one_in(2)).collect();
        for _ in 0..self.below(12).saturating_sub(9) {
            let at = self.below(fields.len() as u64) as usize;
            if self.one_in(2) {
                fields.swap_remove(at);
            } else {
                fields.push(fields[at]);
            }
        }
        for field in fields {
            self.text.push(',');
            self.field(field);
        }
        if self.one_in(SPOILED) {
            let value = self.pick(HOSTILE);
            self.text += &format!(r#","command":{value}"#);
        }
        self.text.push('}');
    }

    fn field(&mut self, field: u64) {
        match field {
            0 => self.named("session", Self::session),
            1 => self.named("include", |this| this.list(4, Self::subnet)),
            2 => self.named("listener_v4", Self::port),
            3 => self.named("listener_v6", Self::port),
            4 => self.named("exclude", |this| this.list(3, Self::subnet)),
            5 => self.named("exclude_ports", |this| this.list(3, Self::host)),
            6 => self.named("datagrams_v4", Self::port),
            7 => self.named("datagrams_v6", Self::port),
            8 => self.named("method", |this| {
                this.leaf(|this| this.pick(&[r#""auto""#, r#""nft""#, r#""iptables""#]).to_owned())
            }),
            9 => self.named("who", Self::who),
            10 => self.named("bridges", |this| this.list(2, Self::bridge)),
            // Mostly not: nearly every plan of these would be refused for it.
            _ => self.named("ipv6_routes", |this| {
                let asked_for = this.one_in(40);
                this.text += if asked_for { "true" } else { "false" };
            }),
        }
    }

    fn update(&mut self) {
        self.text += r#"{"type":"update","#;
        self.field(1);
        if self.one_in(2) {
            self.text.push(',');
            self.field(4);
        }
        self.text.push('}');
    }

    fn origin(&mut self) {
        self.text += r#"{"type":"origin","#;
        self.named("from", Self::host);
        self.text.push(',');
        self.named("at", Self::host);
        self.text.push('}');
    }

    fn names(&mut self) {
        self.text += r#"{"type":"names","#;
        self.named("servers", |this| this.list(4, Self::name_server));
        self.text.push('}');
    }

    fn name_server(&mut self) {
        self.text.push('{');
        self.named("address", |this| {
            this.leaf(|this| {
                let host = this.below(256);
                if this.one_in(3) { format!(r#""fd00::{host:x}""#) } else { format!(r#""10.0.0.{host}""#) }
            })
        });
        self.text.push(',');
        self.named("port", Self::port);
        self.text.push('}');
    }

    fn sockets(&mut self) {
        self.text += r#"{"type":"sockets","#;
        self.named("v6", |this| this.leaf(|_| "true".to_owned()));
        self.text.push(',');
        self.named("stream", |this| this.leaf(|_| "false".to_owned()));
        self.text.push(',');
        self.named("count", |this| this.leaf(|this| this.below(20).to_string()));
        self.text.push('}');
    }

    fn nested(&mut self) {
        let depth = self.below(5000) as usize;
        let (open, close) = if self.one_in(2) { ("[", "]") } else { (r#"{"type":"#, "}") };
        self.text = open.repeat(depth) + &close.repeat(depth);
    }

    fn session(&mut self) {
        self.leaf(|this| {
            let name = this.pick(&["a", "dev-1", "198", "0-9-a-z", "x234567890-234567"]);
            format!(r#""{name}""#)
        });
    }

    fn port(&mut self) {
        self.leaf(|this| this.pick(&["1", "40001", "65535"]).to_owned());
    }

    fn subnet(&mut self) {
        self.leaf(|this| {
            let (a, b, length) = (this.below(200), this.below(256), this.below(25) + 8);
            if this.one_in(3) {
                format!(r#""fd{a:02x}:{b:x}::/{}""#, length * 4)
            } else {
                format!(r#""{}.{b}.0.0/{length}""#, a % 100 + 10)
            }
        });
    }

    fn host(&mut self) {
        self.leaf(|this| {
            this.pick(&[r#""10.0.0.1:6443""#, r#""[fd00::1]:53""#, r#""10.9.8.7:1""#]).to_owned()
        });
    }

    fn id(&mut self) {
        self.leaf(|this| this.below(1 << 32).to_string());
    }

    fn cgroup(&mut self) {
        self.leaf(|this| {
            let path =
                this.pick(&["a", "user.slice/user-1000.slice/user@1000.service", "-.slice/x:y_z", "b/c/d"]);
            format!(r#""{path}""#)
        });
    }

    fn who(&mut self) {
        self.text.push('{');
        self.named("users", |this| this.list(3, Self::id));
        self.text.push(',');
        self.named("groups", |this| this.list(2, Self::id));
        self.text.push(',');
        self.named("cgroups", |this| this.list(2, Self::cgroup));
        self.text.push('}');
    }

    fn bridge(&mut self) {
        let v6 = self.one_in(2);
        self.text.push('{');
        self.named("name", |this| {
            this.leaf(|this| this.pick(&[r#""docker0""#, r#""br-1.x_y""#, r#""7""#]).to_owned())
        });
        let (address, subnet) = if v6 { ("fd01::1", "fd01::/64") } else { ("172.17.0.1", "172.17.0.0/16") };
        self.text.push(',');
        self.named("address", |this| this.leaf(|_| format!(r#""{address}""#)));
        self.text.push(',');
        self.named("subnet", |this| this.leaf(|_| format!(r#""{subnet}""#)));
        self.text.push(',');
        self.named("listener", Self::port);
        if self.one_in(2) {
            self.text.push(',');
            self.named("datagrams", Self::port);
        }
        self.text.push('}');
    }

    fn named(&mut self, name: &str, value: impl FnOnce(&mut Self)) {
        self.text += &format!(r#""{name}":"#);
        if self.one_in(4 * SPOILED) { self.leaf(|this| this.pick(HOSTILE).to_owned()) } else { value(self) }
    }

    /// Up to `most`; now and then far too many.
    fn list(&mut self, most: u64, item: impl Fn(&mut Self)) {
        let count = if self.one_in(20_000) { self.below(5000) } else { self.below(most) + 1 };
        self.text.push('[');
        for at in 0..count {
            if at > 0 {
                self.text.push(',');
            }
            item(self);
        }
        self.text.push(']');
    }

    fn leaf(&mut self, good: impl FnOnce(&mut Self) -> String) {
        let value = if self.one_in(SPOILED) { self.pick(HOSTILE).to_owned() } else { good(self) };
        self.text += &value;
    }

    fn flip(&mut self, body: &mut Vec<u8>) {
        let at = self.below(body.len() as u64 + 1) as usize;
        let byte = *b";\"'\n\\{}[],:0-\0\xff $`".get(self.below(24) as usize).unwrap_or(&b'a');
        match self.below(4) {
            0 => body.insert(at, byte),
            1 if at < body.len() => drop(body.remove(at)),
            2 if at < body.len() => body[at] ^= 1 << self.below(8),
            _ if at < body.len() => body[at] = byte,
            _ => {}
        }
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
