//! Writes news as Events.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use lithe::Digest;
use lithe::spec::ModelDeployment;

use crate::report::events::News;

/// Writes `news` about `model`. The name is the digest of the news, so that the same story told
/// twice is one event. An event that cannot be written is lost: the status says the same.
pub async fn publish(client: &Client, model: &ModelDeployment, news: News, now: &Time) {
    let namespace = model.namespace().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let mut told =
        serde_json::json!([model.uid(), model.metadata.generation, news.reason, news.message]);
    if let (Some(told), Some(when)) = (told.as_array_mut(), &news.when) {
        told.push(serde_json::json!(when));
    }
    let name = format!("{}.{}", model.name_any(), Digest::of_json(&told).short());
    let event = Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..Default::default() },
        event_time: Some(MicroTime(now.0)),
        action: Some(news.action.into()),
        reason: Some(news.reason),
        note: Some(news.message.chars().take(1000).collect()),
        type_: Some(news.kind.into()),
        regarding: Some(model.object_ref(&())),
        reporting_controller: Some("lithe.dev/operator".into()),
        reporting_instance: Some("lithe-operator".into()),
        ..Default::default()
    };
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => tracing::warn!(%error, "event"),
    }
}
