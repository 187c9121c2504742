#include "daemon/store/store.h"

bool credentials_admin(const struct credentials *who)
{
	return who->uid == 0 || who->admin;
}

bool credentials_in_group(const struct credentials *who, uint32_t gid)
{
	if (who->gid == gid)
		return true;
	for (uint32_t i = 0; i < who->group_count; i++)
		if (who->groups[i] == gid)
			return true;
	return false;
}

// As for a file, the first class that fits decides: an owner without the r bit may not read though others may.
bool access_check(const struct identity *object, const struct credentials *who, enum access want)
{
	if (credentials_admin(who))
		return true;
	bool owner = who->uid == object->uid;
	if (want == ACCESS_OWN)
		return owner;
	uint32_t bits = owner ? object->mode >> 6 : credentials_in_group(who, object->gid) ? object->mode >> 3 : object->mode;
	return bits & (want == ACCESS_READ ? 4u : 2u);
}
