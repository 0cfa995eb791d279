//! The statements, in the Cypher that Neo4j 5 and ArcadeDB have in common.
//!
//! A record is a node with the configured label; the table tells its properties. A relation is a relationship of the
//! type `RELATES` with `kind` and `position`, the place among the relations of its record. A target that nobody wrote
//! yet is a node with a key and nothing else, which is no record.
//!
//! | property | holds |
//! |---|---|
//! | `key` | the key, unique |
//! | `_version` | the version; not there where nobody has written |
//! | `_deleted` | `true` on a tombstone |
//! | `_properties` | all properties, as JSON |
//! | `_embedding` | the embedding |
//! | `_lock` | `true`; what is set to it locks the node |
//! | any other | a property that Neo4j can hold as it is, for queries and indexes |
//!
//! Everything that a caller gave is a parameter. ArcadeDB takes a text in a pattern (`MATCH (n {key: ..})`) that begins
//! with `$` for another parameter, if there is one of this name: so nodes are matched by `WHERE`. The label is checked when it is configured; names of properties are
//! spliced only where they cannot end their quotes.

/// The statements for one label.
pub(super) struct Statements {
    /// Keys that are unique. Idempotent, as the next.
    pub(super) constraint: String,
    /// Finds the newest version, and what is to be swept.
    pub(super) index: String,
    /// Locks the nodes of `$touched` and those that they relate to; replaces nodes as `$rows` (`key`, `properties`) say,
    /// where the version held is `$over` at the most; gives the keys of those.
    pub(super) put: String,
    /// Makes relationships as `$rows` (`from`, `to`, `kind`, `position`) say.
    pub(super) relate: String,
    /// Locks the nodes of `$keys` and gives what merges go into, where the version held is `$over` at the most.
    pub(super) lock: String,
    /// Sets properties as `$rows` (`key`, `properties`) say; a null removes one.
    pub(super) merge: String,
    /// The versions held under `$keys`.
    pub(super) versions: String,
    /// What is held under `$keys`.
    pub(super) read: String,
    /// The highest version.
    pub(super) newest: String,
    /// Writes, to be rolled back.
    pub(super) probe: String,
    /// Makes tombstones below `$older` nodes that nobody has written, at most `$batch`.
    pub(super) sweep: String,
    /// Removes nodes that nobody has written and nothing relates to, at most `$batch`.
    pub(super) clean: String,
    label: String,
}

/// Which way relationships lead from the frontier of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrow(pub(super) &'static str, pub(super) &'static str);

/// What is told of a node.
const RECORD: &str = "n.key AS key, n._version AS version, n._deleted AS deleted, n._properties AS properties, \
     n._embedding AS embedding, [(n)-[r:RELATES]->(t) | [r.position, r.kind, t.key]] AS relations";

impl Statements {
    pub(super) fn new(label: &str) -> Self {
        // The lock comes before the version is read: Neo4j reads what is committed by now, and a version that was
        // read without the lock may be an old one when the node is written.
        let fence = format!(
            "MERGE (n:{label} {{key: row.key}}) SET n._lock = true \
             WITH n, row WHERE coalesce(n._version, 0) <= $over"
        );
        // To relate two nodes, or to relate them no more, locks both. Everybody locks everything beforehand and in one
        // order, or writers of related records would deadlock. What a node relates to by now is seen without a lock; if
        // that changes meanwhile, a deadlock is all that can come of it.
        let order = format!(
            "UNWIND $touched AS own OPTIONAL MATCH (n:{label})-[:RELATES]->(t:{label}) WHERE n.key = own \
             WITH collect(DISTINCT t.key) + $touched AS keys UNWIND keys AS key WITH DISTINCT key ORDER BY key \
             MERGE (n:{label} {{key: key}}) SET n._lock = true WITH count(n) AS locked"
        );
        let tombstone = "n._deleted = true AND n._version < $older";
        let loose = "n._version IS NULL AND NOT (n)<-[:RELATES]-()";
        let name = label.to_ascii_lowercase();
        Self {
            constraint: format!(
                "CREATE CONSTRAINT seawall_{name}_key IF NOT EXISTS FOR (n:{label}) REQUIRE n.key IS UNIQUE"
            ),
            index: format!("CREATE INDEX seawall_{name}_version IF NOT EXISTS FOR (n:{label}) ON (n._version)"),
            put: format!(
                "{order} UNWIND $rows AS row {fence} SET n = row.properties \
                 WITH n OPTIONAL MATCH (n)-[r:RELATES]->() DELETE r RETURN DISTINCT n.key AS key"
            ),
            relate: format!(
                "UNWIND $rows AS row MATCH (n:{label}) WHERE n.key = row.from MERGE (t:{label} {{key: row.to}}) \
                 CREATE (n)-[:RELATES {{kind: row.kind, position: row.position}}]->(t)"
            ),
            lock: format!(
                "UNWIND $rows AS row {fence} \
                 RETURN n.key AS key, n._version IS NULL OR n._deleted IS NOT NULL AS blank, n._properties AS properties"
            ),
            merge: format!("UNWIND $rows AS row MATCH (n:{label}) WHERE n.key = row.key SET n += row.properties"),
            versions: format!(
                "UNWIND $keys AS key MATCH (n:{label}) WHERE n.key = key RETURN max(coalesce(n._version, 0)) AS version"
            ),
            read: format!(
                "UNWIND $keys AS key MATCH (n:{label}) WHERE n.key = key AND n._version IS NOT NULL RETURN {RECORD}"
            ),
            newest: format!(
                "MATCH (n:{label}) WHERE n._version > 0 RETURN n._version AS version ORDER BY version DESC LIMIT 1"
            ),
            probe: format!("CREATE (n:{label}) RETURN 1 AS one"),
            sweep: format!(
                "MATCH (n:{label}) WHERE {tombstone} WITH n LIMIT $batch SET n._lock = true \
                 WITH n WHERE {tombstone} SET n = {{key: n.key}} RETURN count(n) AS swept"
            ),
            clean: format!(
                "MATCH (n:{label}) WHERE {loose} WITH n LIMIT $batch SET n._lock = true \
                 WITH n WHERE {loose} DELETE n RETURN count(n) AS cleaned"
            ),
            label: label.to_owned(),
        }
    }

    /// Live records that have these properties, each in the parameter `$f0`, `$f1`, ...
    pub(super) fn find(&self, names: &[&str]) -> String {
        let label = &self.label;
        let equal: String = names.iter().enumerate().map(|(i, name)| format!(" AND n.`{name}` = $f{i}")).collect();
        format!("MATCH (n:{label}) WHERE n._version IS NOT NULL AND n._deleted IS NULL{equal} RETURN {RECORD}")
    }

    /// One step of a walk: from `$frontier` to live records that are not among `$seen`, along `$kinds` or all. Rows
    /// come in the order of the frontier; of each of its keys, what it points to, in the order of its relations, and
    /// then what points to it, by key.
    pub(super) fn step(&self, Arrow(left, right): Arrow) -> String {
        let label = &self.label;
        format!(
            "UNWIND range(0, size($frontier) - 1) AS place \
             MATCH (f:{label}) WHERE f.key = $frontier[place] MATCH (f){left}[r:RELATES]{right}(t:{label}) \
             WHERE t._version IS NOT NULL AND t._deleted IS NULL AND NOT t.key IN $seen \
             AND (size($kinds) = 0 OR r.kind IN $kinds) \
             WITH place, t.key AS key, r.kind AS kind, r.position AS position, startNode(r).key = f.key AS outgoing \
             RETURN place, outgoing, key, kind \
             ORDER BY place, outgoing DESC, CASE WHEN outgoing THEN position ELSE 0 END, key, kind"
        )
    }
}
