//! Reading records from newline-delimited JSON, with every mistake told by its line.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use seawall::limits::{InvalidInput, Limits};
use seawall::operation::Write;
use seawall::record::{Embedding, Key, Record};
use serde::Deserialize;

/// One line of the input.
#[derive(Deserialize)]
struct Line {
    key: String,
    text: String,
    #[serde(default)]
    section: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    installed_kib: u64,
    #[serde(default)]
    relations: Vec<LineRelation>,
    embedding_f32le_base64: String,
}

#[derive(Deserialize)]
struct LineRelation {
    kind: String,
    to: String,
}

/// Why an input cannot be used. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("cannot read `{path}`: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("there is no record in it; give one JSON object a line")]
    Empty,
    #[error("line {line}: this is no record: {problem} (column {column})")]
    Json { line: usize, column: usize, problem: String },
    #[error("line {line}: the embedding of `{key}` is no base64: {source}")]
    Base64 { line: usize, key: String, source: base64::DecodeError },
    #[error("line {line}: the embedding of `{key}` has {bytes} bytes, which is no multiple of 4")]
    Floats { line: usize, key: String, bytes: usize },
    #[error("line {line}: `{key}`: {source}")]
    Invalid { line: usize, key: String, source: InvalidInput },
}

/// All records of an input, each key once.
pub(crate) struct Catalogue {
    pub(crate) records: Vec<Record>,
    /// The number of components of every embedding.
    pub(crate) dimension: usize,
    /// Lines that were replaced by a later line with the same key: that key, the earlier and the later line.
    pub(crate) replaced: Vec<(Key, usize, usize)>,
    places: HashMap<Key, usize>,
}

impl Catalogue {
    /// The bytes of a file, or of the standard input for `-`.
    pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, InputError> {
        let read = if path == Path::new("-") {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).map(|_| bytes)
        } else {
            std::fs::read(path)
        };
        read.map_err(|source| InputError::Read { path: path.display().to_string(), source })
    }

    /// The records in this text. Of several lines with one key the last one counts.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, InputError> {
        let mut limits = Limits::default();
        let mut catalogue = Self { records: Vec::new(), dimension: 0, replaced: Vec::new(), places: HashMap::new() };
        let mut lines: Vec<usize> = Vec::new();
        for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            if text.trim_ascii().is_empty() {
                continue;
            }
            let record = read_line(line, text)?;
            // The gateway would refuse the same, but it does not know the line. The first record sets the dimension.
            let invalid = |source| InputError::Invalid { line, key: record.key.to_string(), source };
            limits.check_write(&Write::store(record.clone())).map_err(invalid)?;
            limits.dimension = record.embedding.as_ref().map(Embedding::dimension);
            match catalogue.places.get(&record.key) {
                Some(&place) => {
                    catalogue.replaced.push((record.key.clone(), lines[place], line));
                    (catalogue.records[place], lines[place]) = (record, line);
                }
                None => {
                    catalogue.places.insert(record.key.clone(), catalogue.records.len());
                    catalogue.records.push(record);
                    lines.push(line);
                }
            }
        }
        catalogue.dimension = limits.dimension.ok_or(InputError::Empty)?;
        Ok(catalogue)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Record> {
        self.places.get(key).map(|place| &self.records[*place])
    }

    pub(crate) fn relations(&self) -> usize {
        self.records.iter().map(|record| record.relations.len()).sum()
    }

    /// The keys of these names, filled up with others, so that there are as many if the input has as many.
    pub(crate) fn pick(&self, names: &[&'static str]) -> Vec<Key> {
        let named = names.iter().map(|name| Key::from(*name)).filter(|key| self.places.contains_key(key));
        let others = self.records.iter().map(|record| record.key.clone());
        let mut seen = HashSet::new();
        named.chain(others).filter(|key| seen.insert(key.clone())).take(names.len()).collect()
    }

    /// The record from which most relations lead to other records: a good place to begin a walk.
    pub(crate) fn best_connected(&self) -> Option<&Record> {
        let known = |record: &&Record| record.relations.iter().filter(|r| self.places.contains_key(&r.to)).count();
        self.records.iter().max_by_key(known)
    }

    /// All keys, those first that the story needs first: these, and what a walk from the best place reaches.
    pub(crate) fn in_order(&self, first: &[Key]) -> Vec<Key> {
        let start = self.best_connected().into_iter();
        let reached = start.flat_map(|record| {
            let next = record.relations.iter().map(|relation| relation.to.clone());
            std::iter::once(record.key.clone()).chain(next)
        });
        let all = self.records.iter().map(|record| record.key.clone());
        let mut seen = HashSet::new();
        let ordered = first.iter().cloned().chain(reached).chain(all);
        ordered.filter(|key| self.places.contains_key(key) && seen.insert(key.clone())).collect()
    }
}

fn read_line(line: usize, text: &[u8]) -> Result<Record, InputError> {
    let read: Line = serde_json::from_slice(text).map_err(|error| {
        let problem = error.to_string();
        // serde_json counts lines within what it was given, which is this line alone.
        let problem = problem.split(" at line ").next().unwrap_or_default().to_owned();
        InputError::Json { line, column: error.column(), problem }
    })?;
    let Line { key, text, section, version, installed_kib, relations, embedding_f32le_base64 } = read;
    let bytes = BASE64_STANDARD.decode(embedding_f32le_base64.trim()).map_err(|source| InputError::Base64 {
        line,
        key: key.clone(),
        source,
    })?;
    let (floats, []) = bytes.as_chunks::<4>() else {
        return Err(InputError::Floats { line, key, bytes: bytes.len() });
    };
    let embedding: Vec<f32> = floats.iter().map(|float| f32::from_le_bytes(*float)).collect();
    let record = Record::new(key)
        .with("text", text)
        .with("section", section)
        .with("version", version)
        .with("installed_kib", installed_kib)
        .with_embedding(embedding);
    Ok(relations.into_iter().fold(record, |record, LineRelation { kind, to }| record.with_relation(kind, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_FLOATS: &str = "AACAPwAAAAA="; // 1.0, 0.0

    fn parse(lines: &[String]) -> Result<Catalogue, InputError> {
        Catalogue::parse(lines.join("\n").as_bytes())
    }

    fn line(key: &str, embedding: &str) -> String {
        format!(r#"{{"key": "{key}", "text": "a text", "embedding_f32le_base64": "{embedding}"}}"#)
    }

    fn message(lines: &[String]) -> String {
        parse(lines).err().expect("is refused").to_string()
    }

    #[test]
    fn records_are_read_whole_and_of_one_key_the_last_line_counts() {
        let mut lines = vec![line("a", TWO_FLOATS), String::new(), line("b", TWO_FLOATS)];
        lines.push(line("a", TWO_FLOATS).replace("a text", "a newer text"));
        let catalogue = parse(&lines).expect("is read");
        assert_eq!((catalogue.records.len(), catalogue.dimension), (2, 2));
        assert_eq!(catalogue.replaced, [("a".into(), 1, 4)]);
        let a = catalogue.get(&"a".into()).expect("is there");
        assert_eq!(a.properties.get("text"), Some(&"a newer text".into()));
        assert_eq!(a.embedding.as_ref().map(Embedding::as_slice), Some([1.0, 0.0].as_slice()));
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let good = || line("a", TWO_FLOATS);
        assert!(message(&[good(), "{".into()]).starts_with("line 2: this is no record: EOF"));
        assert!(message(&[good(), r#"{"key": "b"}"#.into()]).contains("missing field `text`"));
        assert!(message(&[good(), line("b", "AAA$")]).starts_with("line 2: the embedding of `b` is no base64"));
        assert!(message(&[good(), line("b", "AAAA")]).contains("3 bytes"));
        assert!(message(&[good(), line("b", "AACAPw==")]).contains("1 dimensions, the store has 2"));
        assert!(message(&[good(), line("b", "AADAfwAAAAA=")]).contains("NaN"));
        assert!(message(&[line("", TWO_FLOATS)]).contains("a key is empty"));
        assert!(message(&[]).contains("no record"));
    }
}
