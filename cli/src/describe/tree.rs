//! The shards of a stream as a tree of splits and merges.

use std::collections::{BTreeMap, HashMap, HashSet};

use aws_sdk_kinesis::types::Shard;
use console::{Alignment, measure_text_width, pad_str};
use serde::{Serialize, Serializer};

use crate::output::{Paint, escape, short};

/// The columns of the bar that shows the hash range of a shard.
const BAR: usize = 24;

/// A shard of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    id: String,
    parent: Option<String>,
    adjacent_parent: Option<String>,
    /// The first and the last hash key.
    range: Option<(u128, u128)>,
    first_number: Option<String>,
    /// `None` for an open shard.
    last_number: Option<String>,
}

impl Node {
    pub(super) fn of(shard: &Shard) -> Self {
        let range = shard.hash_key_range.as_ref().and_then(|range| {
            Some((range.starting_hash_key.parse().ok()?, range.ending_hash_key.parse().ok()?))
        });
        let numbers = shard.sequence_number_range.as_ref();
        Self {
            id: shard.shard_id.clone(),
            parent: shard.parent_shard_id.clone(),
            adjacent_parent: shard.adjacent_parent_shard_id.clone(),
            range,
            first_number: numbers.map(|numbers| numbers.starting_sequence_number.clone()),
            last_number: numbers.and_then(|numbers| numbers.ending_sequence_number.clone()),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.last_number.is_none()
    }

    fn numbers(&self) -> String {
        let first = self.first_number.as_deref().unwrap_or("-");
        match &self.last_number {
            Some(last) => format!("{} – {}", escape(first.as_bytes()), escape(last.as_bytes())),
            None => format!("{} –", escape(first.as_bytes())),
        }
    }
}

/// A shard of `--output json`.
#[derive(Debug, Serialize)]
struct ShardObject<'a> {
    shard_id: &'a str,
    is_open: bool,
    parents: Vec<&'a str>,
    // Most readers of JSON round numbers of more than 53 bits, so keys are strings.
    first_hash_key: Option<String>,
    last_hash_key: Option<String>,
    first_sequence_number: Option<&'a str>,
    last_sequence_number: Option<&'a str>,
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parents = self.parent.iter().chain(&self.adjacent_parent).map(String::as_str);
        let object = ShardObject {
            shard_id: &self.id,
            is_open: self.is_open(),
            parents: parents.collect(),
            first_hash_key: self.range.map(|(first, _)| first.to_string()),
            last_hash_key: self.range.map(|(_, last)| last.to_string()),
            first_sequence_number: self.first_number.as_deref(),
            last_sequence_number: self.last_number.as_deref(),
        };
        object.serialize(serializer)
    }
}

/// One line of the tree.
struct Branch<'a> {
    /// The lines to the parent, and the shard's number.
    label: String,
    node: &'a Node,
    /// True for a merged shard that is shown in full below its other parent.
    is_reference: bool,
}

/// Returns the tree, with headings.
pub(super) fn tree(nodes: &[Node], paint: Paint) -> String {
    let branches = branches(nodes);
    let width = branches.iter().map(|branch| measure_text_width(&branch.label)).max().unwrap_or(0);
    let width = width.max("SHARD".len());
    let pad = |text: &str, width| pad_str(text, width, Alignment::Left, None).into_owned();
    let headings = format!(
        "{}  {:7}  {:17}  {}SEQUENCE NUMBERS",
        pad("SHARD", width),
        "STATE",
        "HASH KEYS",
        " ".repeat(BAR + 2),
    );
    let mut text = paint.heading(&headings) + "\n";
    for branch in branches {
        let label = pad(&branch.label, width);
        if branch.is_reference {
            text += &paint.dim(&format!("{label}  merged, see its other parent"));
            text.push('\n');
            continue;
        }
        let node = branch.node;
        let state = if node.is_open() { paint.good("open   ") } else { paint.dim("closed ") };
        let (percentages, bar) = match node.range {
            Some(range) => (percentages(range), bar(range)),
            None => ("-".to_owned(), " ".repeat(BAR)),
        };
        text += &format!(
            "{}  {state}  {percentages:17}  {}  {}\n",
            paint.name(&label),
            if node.is_open() { bar } else { paint.dim(&bar) },
            paint.dim(&node.numbers()),
        );
    }
    text
}

/// Returns the lines of the tree: a root for each shard whose parents are not listed, and below each
/// shard the shards that it was split or merged into.
fn branches(nodes: &[Node]) -> Vec<Branch<'_>> {
    let listed: HashSet<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
    let known = |parent: &'_ Option<String>| {
        parent.as_deref().filter(|parent| listed.contains(parent)).map(str::to_owned)
    };
    let mut children: HashMap<String, Vec<&Node>> = HashMap::new();
    let mut roots = BTreeMap::new();
    for node in nodes {
        let parents = [known(&node.parent), known(&node.adjacent_parent)];
        if parents.iter().all(Option::is_none) {
            roots.insert(&node.id, node);
        }
        for parent in parents.into_iter().flatten() {
            children.entry(parent).or_default().push(node);
        }
    }
    for some in children.values_mut() {
        some.sort_by_key(|node| &node.id);
    }
    let mut branches = Vec::new();
    let mut shown = HashSet::new();
    // A stack instead of recursion, since a stream may have been split thousands of times.
    let mut stack: Vec<(&Node, String, String)> = Vec::new();
    for root in roots.into_values().rev() {
        stack.push((root, String::new(), String::new()));
    }
    while let Some((node, lead, indent)) = stack.pop() {
        let label = format!("{lead}{}", escape(short(&node.id).as_bytes()));
        let is_reference = !shown.insert(&node.id);
        branches.push(Branch { label, node, is_reference });
        let below = children.get(&node.id).filter(|_| !is_reference);
        let below = below.map(Vec::as_slice).unwrap_or_default();
        for (index, child) in below.iter().enumerate().rev() {
            let is_last = index + 1 == below.len();
            let (joint, rail) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            stack.push((child, format!("{indent}{joint}"), format!("{indent}{rail}")));
        }
    }
    branches
}

/// Returns the part of the hash keys in percent: `25 – 50 %`.
#[allow(clippy::cast_precision_loss, reason = "percentages are shown with two digits")]
fn percentages((first, last): (u128, u128)) -> String {
    let percent = |key: u128, past: f64| {
        let text = format!("{:.2}", (key as f64 + past) / (u128::MAX as f64) * 100.0);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    format!("{} – {} %", percent(first, 0.0), percent(last, 1.0))
}

/// Returns a bar of all hash keys, in which the range is filled.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a bar has few cells"
)]
fn bar((first, last): (u128, u128)) -> String {
    let cell = |key: u128| (key as f64 / u128::MAX as f64 * BAR as f64).round() as usize;
    let begin = cell(first).min(BAR - 1);
    // A small range has one cell.
    let end = cell(last).clamp(begin + 1, BAR);
    format!("{}{}{}", "·".repeat(begin), "█".repeat(end - begin), "·".repeat(BAR - end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::assert_snapshot;

    fn node(number: usize, parents: &[usize], quarters: (u128, u128), is_open: bool) -> Node {
        let id = |number: &usize| format!("shardId-{number:012}");
        let quarter = u128::MAX / 4 + 1;
        let last = if quarters.1 == 4 { u128::MAX } else { quarters.1 * quarter - 1 };
        Node {
            id: id(&number),
            parent: parents.first().map(id),
            adjacent_parent: parents.get(1).map(id),
            range: Some((quarters.0 * quarter, last)),
            first_number: Some(format!("4959033827149{number}")),
            last_number: (!is_open).then(|| format!("4959033827150{number}")),
        }
    }

    #[test]
    fn splits_and_merges_are_as_in_the_snapshot() {
        let nodes = [
            node(0, &[], (0, 2), false),
            node(1, &[], (2, 4), false),
            node(2, &[0], (0, 1), true),
            node(3, &[0], (1, 2), false),
            node(4, &[1], (2, 3), false),
            node(5, &[1], (3, 4), true),
            node(6, &[3, 4], (1, 3), true),
        ];
        // The parent of the last shard has left retention.
        let late = [node(12, &[7], (0, 4), true)];
        let text = tree(&nodes, Paint::plain()) + &tree(&late, Paint::plain());
        assert_snapshot("describe.txt", include_str!("../snapshots/describe.txt"), &text);
    }

    proptest! {
        #[test]
        fn each_shard_is_shown_in_full_once(
            parents in prop::collection::vec(prop::collection::vec(0..40_usize, 0..3), 1..40),
        ) {
            // Parents are older than their children, as in Kinesis.
            let nodes: Vec<Node> = parents.iter().enumerate().map(|(number, parents)| {
                let parents: Vec<usize> = parents.iter().copied().filter(|parent| *parent < number).collect();
                node(number, &parents, (0, 4), true)
            }).collect();
            let branches = branches(&nodes);
            let full: HashSet<&String> = branches.iter().filter(|branch| !branch.is_reference).map(|branch| &branch.node.id).collect();
            prop_assert_eq!(full.len(), nodes.len());
            prop_assert_eq!(branches.iter().filter(|branch| !branch.is_reference).count(), nodes.len());
        }

        #[test]
        fn bar_has_its_width(first: u128, length: u128) {
            let last = first.saturating_add(length);
            prop_assert_eq!(measure_text_width(&bar((first, last))), BAR);
        }
    }
}
