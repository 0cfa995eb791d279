//! From sources to sections: layers are merged into one tree, and every section is read from its branch of it.
//!
//! The crate `config` collects the sources. Merging and typing are done here, because it would read `5.7` as 6
//! and `true` as 1, follow keys as paths into lists, and stop at the first problem.

use std::collections::BTreeMap;
use std::path::Path;

use config::{File, FileFormat, Source};
use seawall_actors::config::ConfigProblem;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::names::{self, Variable};

/// Sections that are there with a cargo feature alone, and which that is.
const FEATURES: &[(&str, &str)] =
    &[("neo4j", "neo4j"), ("qdrant", "qdrant"), ("redis", "redis"), ("redis_cache", "redis")];

/// The merged layers, and what was wrong with them so far.
#[derive(Default)]
pub(super) struct Tree {
    branches: Map<String, Value>,
    /// The variables that have set something, by the path that they set.
    variables: BTreeMap<String, Variable>,
    /// Sections as they were read, without what was wrong in them.
    read: Map<String, Value>,
    /// The sections that were asked for.
    known: Vec<&'static str>,
    pub(super) problems: Vec<ConfigProblem>,
}

impl Tree {
    /// Merges a TOML text over what is there.
    pub(super) fn merge_text(&mut self, toml: &str) {
        self.merge_source("TOML", &File::from_str(toml, FileFormat::Toml));
    }

    /// Merges a TOML file over what is there.
    pub(super) fn merge_file(&mut self, path: &Path) {
        self.merge_source(&path.display().to_string(), &File::from(path).format(FileFormat::Toml));
    }

    fn merge_source(&mut self, origin: &str, source: &dyn Source) {
        match source.collect().and_then(|table| config::Value::from(table).try_deserialize()) {
            Ok(mut layer) => {
                names::unify(&mut layer, &mut self.problems);
                merge("", &mut self.branches, layer, &mut self.problems);
            }
            Err(error) => self.problem(origin, without_source(&error.to_string())),
        }
    }

    /// Merges variables over what is there, later ones over earlier ones.
    pub(super) fn merge_variables(&mut self, variables: Vec<Variable>) {
        for variable in variables {
            let mut layer = variable.literal();
            for key in variable.path.rsplit('.') {
                layer = Value::Object(Map::from_iter([(key.to_owned(), layer)]));
            }
            let Value::Object(layer) = layer else { continue };
            merge("", &mut self.branches, layer, &mut self.problems);
            self.variables.insert(variable.path.clone(), variable);
        }
    }

    /// Takes the section of this name from the tree: what is set in it over the defaults of its type.
    /// What is not set at all, or is not even a section, is `default`.
    pub(super) fn section<T: DeserializeOwned>(&mut self, name: &'static str, default: T) -> T {
        self.known.push(name);
        let Some(mut branch) = self.branches.remove(name) else { return default };
        let Some(section) = self.parse(name, &mut branch) else { return default };
        self.read.insert(name.to_owned(), branch);
        section
    }

    /// The same for a section of which there is one per name. Sections inside it that are also sections of their
    /// own, and were read before, have those for their defaults: `backends.graph.breaker` starts from `breaker`.
    pub(super) fn sections<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        inherited: &[&str],
    ) -> BTreeMap<String, T> {
        self.known.push(name);
        let branches = match self.branches.remove(name) {
            None => return BTreeMap::new(),
            Some(Value::Object(branches)) => branches,
            Some(_) => {
                self.problem(name, "is a section with keys of its own, not a value");
                return BTreeMap::new();
            }
        };
        let mut sections = BTreeMap::new();
        for (key, branch) in branches {
            let path = format!("{name}.{key}");
            let Value::Object(own) = branch else {
                self.problem(path, "is a section with keys of its own, not a value");
                continue;
            };
            let inherit = |name: &&str| Some(((*name).to_owned(), self.read.get(*name)?.clone()));
            let mut all: Map<_, _> = inherited.iter().filter_map(inherit).collect();
            merge(&path, &mut all, own, &mut self.problems);
            if let Some(section) = self.parse(&path, &mut Value::Object(all)) {
                sections.insert(key, section);
            }
        }
        sections
    }

    /// Everything that no section was taken for is unknown.
    pub(super) fn finish(mut self) -> Vec<ConfigProblem> {
        for name in std::mem::take(&mut self.branches).keys() {
            self.problem(name, format!("unknown field, expected one of {}", self.known.join(", ")));
        }
        self.problems
    }

    /// Reads a value from a branch. A part that is wrong is told, cut out and left to its default, until the
    /// rest can be read: so every problem is found, not the first alone.
    fn parse<T: DeserializeOwned>(&mut self, at: &str, branch: &mut Value) -> Option<T> {
        let mut as_text: Option<(String, String)> = None;
        loop {
            let error = match serde_path_to_error::deserialize(&*branch) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let keys = keys(error.path());
            let path = std::iter::once(at).chain(keys.iter().map(String::as_str)).collect::<Vec<_>>().join(".");
            let mut problem = error.into_inner().to_string();
            // A variable is text: `123` is a number where one is wanted, and may be a file name elsewhere.
            match as_text.take() {
                Some((tried, first)) if tried == path => problem = first,
                _ => {
                    if let Some(variable) = self.variables.get(&path)
                        && let Some(node) = node(branch, &keys)
                        && !node.is_string()
                    {
                        *node = Value::String(variable.text.clone());
                        as_text = Some((path, problem));
                        continue;
                    }
                }
            }
            self.problem(path, problem);
            if !cut(branch, &keys) {
                return None;
            }
        }
    }

    fn problem(&mut self, path: impl Into<String>, problem: impl Into<String>) {
        let path = path.into();
        let mut problem = problem.into();
        let key = path.rsplit('.').next().unwrap_or_default();
        if problem.starts_with("unknown field")
            && let Some((_, feature)) = FEATURES.iter().find(|(section, _)| *section == key)
        {
            problem = format!("{problem} (`{key}` needs the cargo feature `{feature}`)");
        }
        let inside = format!("{path}.");
        let mut set =
            self.variables.range(path.clone()..).take_while(|(at, _)| **at == path || at.starts_with(&inside));
        if let Some((_, variable)) = set.next() {
            problem = format!("{problem} (set by {})", variable.name);
        }
        self.problems.push(ConfigProblem { path, problem });
    }
}

/// What a TOML parser says, without the line that it shows: that may hold a secret.
fn without_source(problem: &str) -> String {
    let shown = |line: &&str| match line.split_once('|') {
        Some((number, _)) => number.trim().bytes().all(|byte| byte.is_ascii_digit()),
        None => false,
    };
    problem.lines().filter(|line| !shown(line)).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// Merges `over` into `base`; values of `over` win.
fn merge(at: &str, base: &mut Map<String, Value>, over: Map<String, Value>, problems: &mut Vec<ConfigProblem>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(base)), Value::Object(over)) => {
                let at = if at.is_empty() { key } else { format!("{at}.{key}") };
                merge(&at, base, over, problems);
            }
            (Some(below), value) => {
                if below.is_object() != value.is_object() {
                    problems.push(ConfigProblem::new(at, &key, "is a section in one place and a value in another"));
                }
                *below = value;
            }
            (None, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// The keys that lead to the place of an error, up to the first list: lists are judged as a whole.
fn keys(path: &serde_path_to_error::Path) -> Vec<String> {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Seq { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn node<'a>(branch: &'a mut Value, keys: &[String]) -> Option<&'a mut Value> {
    keys.iter().try_fold(branch, |node, key| node.as_object_mut()?.get_mut(key))
}

/// Removes what is at this place; `false` when nothing is left to remove.
fn cut(branch: &mut Value, keys: &[String]) -> bool {
    let Some((last, parents)) = keys.split_last() else { return false };
    match node(branch, parents) {
        Some(Value::Object(parent)) => parent.remove(last).is_some(),
        _ => false,
    }
}
