//! Breaking the components of the test cluster from the laptop, where none of their processes is to be seen: the node's
//! operator does it (`scripts/cluster.d/node-operator`).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The operator waits up to 10 s for a process to be gone.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// A component that is not as it should be. Dropping it makes it run again.
pub struct Broken {
    component: &'static str,
    mend: &'static str,
}

impl Broken {
    /// SIGKILL: as a crash. The component starts again when this is dropped, or with [`mend`](Self::mend).
    ///
    /// # Panics
    /// When the operator cannot.
    pub fn killed(component: &'static str) -> Self {
        order("kill", component);
        Self { component, mend: "start" }
    }

    /// SIGSTOP: the machine it runs on takes packets and answers nothing.
    ///
    /// # Panics
    /// When the operator cannot.
    pub fn paused(component: &'static str) -> Self {
        order("pause", component);
        Self { component, mend: "resume" }
    }

    /// Lets it run again; it needs a while until it answers.
    pub fn mend(self) {}
}

impl Drop for Broken {
    fn drop(&mut self) {
        order(self.mend, self.component);
    }
}

fn order(verb: &str, component: &str) {
    let path = std::env::var_os("KSHUTTLE_BOX_OPERATOR").expect("the box names its operator");
    let mut operator =
        UnixStream::connect(&path).unwrap_or_else(|error| panic!("connect to {path:?}: {error}"));
    operator.set_read_timeout(Some(ANSWER_TIME_MAX)).expect("the time is not zero");
    writeln!(operator, "{verb} {component}").expect("the operator listens");
    let mut answer = String::new();
    BufReader::new(operator).read_line(&mut answer).expect("the operator answers");
    assert_eq!(answer.trim(), "ok", "{verb} {component}");
}
