package dwcp.tags_test

import data.dwcp.tags

tagged := {"owner": "alice", "project": "shop", "environment": "test", "cost_center": "42"}

create(tags) := {"action": "vm.create", "object": {"name": "web-1", "tags": tags}}

test_all_tags_pass if count(tags.deny) == 0 with input as create(tagged)

test_each_missing_tag_is_named if {
	messages := tags.deny with input as create(object.remove(tagged, ["owner", "cost_center"]))
	count(messages) == 2
	some message in messages
	contains(message, "cost_center")
}

test_an_empty_tag_is_missing if {
	count(tags.deny) == 1 with input as create(object.union(tagged, {"owner": ""}))
}

test_no_tags_at_all if {
	count(tags.deny) == 4 with input as {"action": "vm.create", "object": {"name": "web-1"}}
}

test_only_creation_is_its_concern if {
	not tags.applies with input as {"action": "vm.delete", "object": {"name": "web-1"}}
}
