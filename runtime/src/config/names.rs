//! The names that a setting can be given by: environment variables, and what the documents call the keys.

use seawall_actors::config::ConfigProblem;
use serde_json::{Map, Value};

/// What every variable of Seawall's own begins with.
pub(super) const PREFIX: &str = "SEAWALL__";

/// The variables of document 004, and the keys that they set.
pub(super) const VARIABLES: &[(&str, &str)] = &[
    ("CIRCUIT_FAILURE_THRESHOLD", "breaker.failure_threshold"),
    ("CIRCUIT_SUCCESS_THRESHOLD", "breaker.success_threshold"),
    ("CIRCUIT_TIMEOUT", "breaker.reset_timeout"),
    ("FALLBACK_MODE", "fallback.mode_when_degraded"),
    ("FALLBACK_DB_PATH", "data_dir"),
];

/// The variable of document 003 that turns Redis on.
const PERSISTENCE: &str = "ENABLE_CIRCUIT_BREAKER_PERSISTENCE";

/// The variables of document 003 that tell where Redis is, and the keys that they set.
pub(super) const REDIS: &[(&str, &str)] = &[
    ("REDIS_HOST", "redis.host"),
    ("REDIS_PORT", "redis.port"),
    ("REDIS_DB", "redis.db"),
    ("REDIS_PASSWORD", "redis.password"),
];

/// What keys are called, in any section, that hold a text and never anything that looks like JSON.
const SECRETS: &[&str] = &["api_key", "password"];

/// Keys as the documents call them: the section, their name, our name.
///
/// Also known to serde, as aliases; here too so that a key set under one name in a file is overridden by the
/// other name in the environment, instead of being set twice.
pub(super) const ALIASES: &[(&str, &str, &str)] = &[
    ("breaker", "timeout_seconds", "reset_timeout"),
    ("breaker", "rolling_window_seconds", "rolling_window"),
    ("breaker", "excluded_exceptions", "excluded_errors"),
    ("fallback", "mode", "mode_when_degraded"),
    ("health", "check_interval_seconds", "interval"),
    ("health", "timeout_seconds", "timeout"),
    ("queue", "max_queue_size", "max_entries"),
    ("saga", "timeout_seconds", "timeout"),
    ("sync", "drain_batch_size", "batch"),
];

/// Keys that a document has in another section than we: its path, ours.
pub(super) const MOVED: &[(&str, &str)] = &[("saga.max_retries", "call.retry.max_retries")];

/// A setting from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    /// The variable.
    pub(super) name: String,
    /// The dotted path of the key that it sets, under our name.
    pub(super) path: String,
    /// What it says.
    pub(super) text: String,
}

impl Variable {
    /// What the text says as a JSON value; as text where it is none.
    pub(super) fn literal(&self) -> Value {
        if SECRETS.contains(&section_of(&self.path).1) {
            return Value::String(self.text.clone());
        }
        serde_json::from_str(&self.text).unwrap_or_else(|_| Value::String(self.text.clone()))
    }
}

/// What the environment says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Environment {
    /// What it sets, in rising precedence: the names of the documents, then Seawall's own.
    pub(super) variables: Vec<Variable>,
    /// Variables that mean something in the documents and nothing here.
    pub(super) unused: Vec<ConfigProblem>,
    /// Variables that name no key.
    pub(super) problems: Vec<ConfigProblem>,
    /// The home directory, for paths that start with `~`.
    pub(super) home: Option<String>,
}

impl Environment {
    /// Reads the variables. Empty ones count as not set, and everybody else's are left alone.
    pub(super) fn read(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut all: Vec<_> = variables.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        all.sort();
        let get = |wanted: &str| all.iter().find(|(name, _)| name == wanted).map(|(_, text)| text.clone());

        let mut environment = Self { home: get("HOME"), ..Self::default() };
        for (name, path) in VARIABLES {
            if let Some(text) = get(name) {
                let variable = Variable { name: (*name).to_owned(), path: canonical(path), text };
                environment.variables.push(variable);
            }
        }
        environment.read_persistence(get);
        for (name, text) in &all {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            let path = key.to_lowercase().replace("__", ".");
            if path.split('.').any(str::is_empty) {
                environment.problems.push(ConfigProblem::new("", name, "names no key; write SEAWALL__SECTION__KEY"));
            } else {
                let variable = Variable { name: name.clone(), path: canonical(&path), text: text.clone() };
                environment.variables.push(variable);
            }
        }
        if get("FALLBACK_CACHE_DIR").is_some() {
            environment
                .note("FALLBACK_CACHE_DIR", "not used: the cache is in memory; what must survive is in data_dir");
        }
        environment
    }

    /// The Redis variables mean Seawall only where its persistence is asked for; else they are the service's own.
    fn read_persistence(&mut self, get: impl Fn(&str) -> Option<String>) {
        let built_in = cfg!(feature = "redis");
        let Some(asked) = get(PERSISTENCE) else { return };
        let (on, text) = match asked.to_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => (true, "true".to_owned()),
            "0" | "false" | "no" | "off" => (false, "false".to_owned()),
            _ => (false, asked),
        };
        if !on {
            self.note(PERSISTENCE, "breaker state is always kept; where not in Redis, in data_dir");
        }
        if built_in {
            self.variables.push(Variable { name: PERSISTENCE.to_owned(), path: "redis.enabled".to_owned(), text });
        }
        for (name, path) in REDIS.iter().filter(|_| on) {
            let Some(text) = get(name) else { continue };
            if built_in {
                self.variables.push(Variable { name: (*name).to_owned(), path: (*path).to_owned(), text });
            } else {
                let problem = "not used: breaker state is kept in data_dir; to keep it in Redis, build the crate \
                               seawall with its feature `redis`";
                self.note(name, problem);
            }
        }
    }

    fn note(&mut self, name: &str, problem: &str) {
        self.unused.push(ConfigProblem::new("", name, problem));
    }
}

/// The path under our name of a path that may be under a document's.
fn canonical(path: &str) -> String {
    if let Some((_, ours)) = MOVED.iter().find(|(theirs, _)| *theirs == path) {
        return (*ours).to_owned();
    }
    for (section, alias, key) in ALIASES {
        if let Some(head) = path.strip_suffix(&format!("{section}.{alias}"))
            && (head.is_empty() || head.starts_with("backends."))
        {
            return format!("{head}{section}.{key}");
        }
    }
    path.to_owned()
}

/// Gives the keys of a file that are under a document's name our name.
pub(super) fn unify(layer: &mut Map<String, Value>, problems: &mut Vec<ConfigProblem>) {
    for (section, alias, key) in ALIASES {
        if let Some(branch) = branch(layer, section) {
            rename(section, branch, alias, key, problems);
        }
    }
    for (theirs, ours) in MOVED {
        relocate(layer, theirs, ours, problems);
    }
    let Some(Value::Object(backends)) = layer.get_mut("backends") else { return };
    for (name, backend) in backends {
        for (section, alias, key) in ALIASES {
            if let Some(backend) = backend.as_object_mut()
                && let Some(branch) = branch(backend, section)
            {
                rename(&format!("backends.{name}.{section}"), branch, alias, key, problems);
            }
        }
    }
}

fn relocate(layer: &mut Map<String, Value>, theirs: &str, ours: &str, problems: &mut Vec<ConfigProblem>) {
    let ((from, alias), (to, key)) = (section_of(theirs), section_of(ours));
    let Some(value) = branch(layer, from).and_then(|section| section.remove(alias)) else { return };
    let empty = || Value::Object(Map::new());
    let section = to.split('.').try_fold(layer, |map, key| map.entry(key).or_insert_with(empty).as_object_mut());
    match section {
        Some(section) if section.contains_key(key) => {
            problems.push(ConfigProblem::new(from, alias, format!("another name of `{ours}`, which is set too")));
        }
        Some(section) => {
            section.insert(key.to_owned(), value);
        }
        // What stands there is no section, and that is told.
        None => {}
    }
}

/// The section of a path, and the key in it.
fn section_of(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

fn branch<'a>(layer: &'a mut Map<String, Value>, path: &str) -> Option<&'a mut Map<String, Value>> {
    path.split('.').try_fold(layer, |map, key| map.get_mut(key)?.as_object_mut())
}

fn rename(at: &str, branch: &mut Map<String, Value>, alias: &str, key: &str, problems: &mut Vec<ConfigProblem>) {
    let Some(value) = branch.remove(alias) else { return };
    if branch.contains_key(key) {
        problems.push(ConfigProblem::new(at, alias, format!("another name of `{key}`, which is set too")));
    } else {
        branch.insert(key.to_owned(), value);
    }
}
