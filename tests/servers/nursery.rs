//! The thread that starts every server, and lives as long as the process.
//!
//! Linux kills a server (`setpriv --pdeathsig`) when the *thread* that started it ends. The thread of a test ends
//! before a server that tests share, and does not end in order when the process is killed; this one is right for both.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts a process that prints into this file.
pub(super) fn spawn(command: Command, log: &Path) -> Child {
    static NURSERY: OnceLock<Sender<Order>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (orders, waiting) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in waiting {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let program = command.get_program().to_owned();
    let mut command = mortal(command);
    let out = File::create(log).expect("a file for what it prints");
    let err = out.try_clone().expect("the same file again");
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let (reply, child) = channel();
    nursery.send((command, reply)).expect("the nursery never ends");
    let spawned = child.recv().expect("the nursery answers");
    spawned.unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// The same command, for a process that dies with the one that started it, where the system has that.
fn mortal(command: Command) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return command;
    }
    let mut mortal = Command::new(setpriv);
    mortal.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => mortal.env(name, value),
            None => mortal.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        mortal.current_dir(dir);
    }
    mortal
}
