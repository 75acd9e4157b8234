//! The requests of a KCL to its lease table, with the legacy conditions that it uses.
//!
//! Read in `DynamoDBLeaseRefresher` and `DynamoDBLeaseSerializer` of amazon-kinesis-client 2.7.3 and
//! 3.5.1, and in `LeaseManager` of 1.15.3.

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeAction, AttributeValue, AttributeValueUpdate, ExpectedAttributeValue,
};

pub(crate) type Item = HashMap<String, AttributeValue>;

/// A lease, as a KCL reads it.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) key: String,
    pub(crate) owner: Option<String>,
    pub(crate) checkpoint_owner: Option<String>,
    pub(crate) counter: u64,
    pub(crate) checkpoint: String,
    pub(crate) sub_sequence_number: u64,
    pub(crate) parents: Vec<String>,
    pub(crate) children: Vec<String>,
    pub(crate) epoch: Option<u64>,
    pub(crate) claimed_by: Option<String>,
}

impl Lease {
    /// Reads a row. A KCL of version 2.7 stops to take leases if any row lacks one of the numbers.
    fn read(item: &Item) -> Self {
        let text = |name: &str| item.get(name).map(|value| value.as_s().unwrap().clone());
        let number = |name: &str| -> Option<u64> {
            item.get(name).map(|value| value.as_n().unwrap().parse().unwrap())
        };
        let needed = |name: &str| {
            number(name).unwrap_or_else(|| panic!("a KCL needs {name} in each row: {item:?}"))
        };
        let texts = |name: &str| {
            item.get(name).map_or_else(Vec::new, |value| value.as_ss().unwrap().clone())
        };
        let _switches = needed("ownerSwitchesSinceCheckpoint");
        assert!(i64::try_from(needed("checkpointSubSequenceNumber")).is_ok(), "a long of Java");
        Self {
            key: text("leaseKey").unwrap(),
            owner: text("leaseOwner"),
            checkpoint_owner: text("checkpointOwner"),
            counter: needed("leaseCounter"),
            checkpoint: text("checkpoint").unwrap(),
            sub_sequence_number: needed("checkpointSubSequenceNumber"),
            parents: texts("parentShardId"),
            children: texts("childShardIds"),
            epoch: number("kinestreamEpoch"),
            claimed_by: text("kinestreamOwner"),
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.checkpoint == "SHARD_END"
    }
}

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn is(value: AttributeValue) -> ExpectedAttributeValue {
    ExpectedAttributeValue::builder().value(value).build()
}

fn is_absent() -> ExpectedAttributeValue {
    ExpectedAttributeValue::builder().exists(false).build()
}

fn same(text: Option<&String>) -> ExpectedAttributeValue {
    text.map_or_else(is_absent, |text| is(string(text)))
}

fn put(value: AttributeValue) -> AttributeValueUpdate {
    AttributeValueUpdate::builder().action(AttributeAction::Put).value(value).build()
}

fn add(value: u64) -> AttributeValueUpdate {
    AttributeValueUpdate::builder().action(AttributeAction::Add).value(number(value)).build()
}

fn delete() -> AttributeValueUpdate {
    AttributeValueUpdate::builder().action(AttributeAction::Delete).build()
}

/// The lease table of a KCL.
#[derive(Debug, Clone)]
pub(crate) struct LeaseTable {
    pub(crate) client: Client,
    pub(crate) name: String,
}

impl LeaseTable {
    /// Returns all leases. A KCL reads without consistency; the server of the tests knows no other.
    pub(crate) async fn scan(&self) -> Vec<Lease> {
        self.try_scan().await.expect("expected the server to answer")
    }

    /// Returns all leases; `None` if the server does not answer.
    pub(crate) async fn try_scan(&self) -> Option<Vec<Lease>> {
        let page = self.client.scan().table_name(&self.name).send().await.ok()?;
        Some(page.items().iter().map(Lease::read).collect())
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Lease> {
        let request = self.client.get_item().table_name(&self.name).key("leaseKey", string(key));
        request.send().await.unwrap().item().map(Lease::read)
    }

    /// Adds the lease of a shard, unless it exists.
    pub(crate) async fn create(&self, key: &str, parents: &[String]) {
        let mut request = self
            .client
            .put_item()
            .table_name(&self.name)
            .item("leaseKey", string(key))
            .item("leaseCounter", number(0))
            .item("ownerSwitchesSinceCheckpoint", number(0))
            .item("checkpoint", string("TRIM_HORIZON"))
            .item("checkpointSubSequenceNumber", number(0))
            .expected("leaseKey", is_absent());
        if !parents.is_empty() {
            request = request.item("parentShardId", AttributeValue::Ss(parents.to_vec()));
        }
        match request.send().await {
            Ok(_) => {}
            Err(error) => assert!(
                error
                    .as_service_error()
                    .is_some_and(PutItemError::is_conditional_check_failed_exception),
                "{error:?}"
            ),
        }
    }

    /// Renews a lease. `is_native` is true for the algorithm of the KCL 3.
    pub(crate) async fn renew(&self, lease: &Lease, is_native: bool) -> bool {
        let mut request = self.of(&lease.key).expected("leaseCounter", is(number(lease.counter)));
        if is_native {
            request = request.expected("checkpointOwner", is_absent());
            request = request.attribute_updates("throughputKBps", put(number(1)));
        }
        is_done(request.attribute_updates("leaseCounter", put(number(lease.counter + 1)))).await
    }

    /// Takes a lease that is free, has expired, or is stolen.
    pub(crate) async fn take(&self, lease: &Lease, worker: &str) -> bool {
        let mut request = self
            .of(&lease.key)
            .expected("leaseCounter", is(number(lease.counter)))
            .attribute_updates("leaseOwner", put(string(worker)))
            .attribute_updates("leaseCounter", put(number(lease.counter + 1)))
            .attribute_updates("checkpointOwner", delete());
        if lease.owner.as_deref().is_some_and(|owner| owner != worker) {
            request = request.attribute_updates("ownerSwitchesSinceCheckpoint", add(1));
        }
        is_done(request).await
    }

    /// Saves a position under the counter alone.
    pub(crate) async fn checkpoint(&self, lease: &Lease, checkpoint: &str, part: u64) -> bool {
        let request = self
            .of(&lease.key)
            .expected("leaseCounter", is(number(lease.counter)))
            .attribute_updates("leaseCounter", put(number(lease.counter + 1)))
            .attribute_updates("checkpoint", put(string(checkpoint)))
            .attribute_updates("checkpointSubSequenceNumber", put(number(part)))
            .attribute_updates("ownerSwitchesSinceCheckpoint", put(number(0)))
            .attribute_updates("pendingCheckpoint", delete())
            .attribute_updates("pendingCheckpointSubSequenceNumber", delete())
            .attribute_updates("pendingCheckpointState", delete());
        is_done(request).await
    }

    /// Assigns a lease, as the leader of the KCL 3 does, or ends a handoff to its next owner.
    pub(crate) async fn assign(&self, lease: &Lease, worker: &str) -> bool {
        let request = self
            .of(&lease.key)
            .expected("leaseKey", is(string(&lease.key)))
            .expected("leaseOwner", same(lease.owner.as_ref()))
            .expected("checkpointOwner", same(lease.checkpoint_owner.as_ref()))
            .attribute_updates("leaseOwner", put(string(worker)))
            .attribute_updates("checkpointOwner", delete())
            .attribute_updates("leaseCounter", add(1));
        is_done(request).await
    }

    /// Begins a graceful handoff, as the leader of the KCL 3 does. The counter stays the same.
    pub(crate) async fn begin_handoff(&self, lease: &Lease, from: &str, to: &str) -> bool {
        let request = self
            .of(&lease.key)
            .expected("leaseOwner", is(string(from)))
            .expected("checkpointOwner", is_absent())
            .attribute_updates("leaseOwner", put(string(to)))
            .attribute_updates("checkpointOwner", put(string(from)));
        is_done(request).await
    }

    pub(crate) async fn name_children(&self, lease: &Lease, children: &[String]) {
        let request = self
            .of(&lease.key)
            .expected("leaseKey", is(string(&lease.key)))
            .attribute_updates("childShardIds", put(AttributeValue::Ss(children.to_vec())));
        is_done(request).await;
    }

    pub(crate) async fn delete(&self, key: &str) {
        let request = self.client.delete_item().table_name(&self.name);
        request.key("leaseKey", string(key)).send().await.unwrap();
    }

    fn of(&self, key: &str) -> UpdateItemFluentBuilder {
        self.client.update_item().table_name(&self.name).key("leaseKey", string(key))
    }
}

/// Sends an update. Returns false if its condition does not hold.
async fn is_done(request: UpdateItemFluentBuilder) -> bool {
    match request.send().await {
        Ok(_) => true,
        Err(error) => {
            let refused = error.as_service_error();
            assert!(
                refused.is_some_and(UpdateItemError::is_conditional_check_failed_exception),
                "{error:?}"
            );
            false
        }
    }
}
