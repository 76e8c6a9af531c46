# Whatever is created carries the tags by which it is owned, charged and cleaned up.
package dwcp.tags

required := {"owner", "project", "environment", "cost_center"}

applies if input.action in {"vm.create", "volume.create", "network.create"}

deny contains message if {
	some tag in required
	not given(tag)
	message := sprintf("The tag %s is missing; give it with --tag %s=VALUE.", [tag, tag])
}

given(tag) if input.object.tags[tag] != ""
