#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "plan_model.h"

#define MAX_CONFIG_BYTES (4u << 20)

static bool head_dimension(int d)
{
	return d == 64 || d == 80 || d == 96 || d == 128 || d == 256;
}

static int check(const struct plan_shape *s, char *why, size_t why_bytes)
{
	const struct mpig_layer *l = &s->layer[0];
	if (s->layers < 1 || s->layers > PLAN_MAX_LAYERS)
		snprintf(why, why_bytes, "%d layers: 1 to %d", s->layers, PLAN_MAX_LAYERS);
	else if (l->kv_heads < 1 || l->query_heads < 1 || l->query_heads > 256 || l->query_heads % l->kv_heads)
		snprintf(why, why_bytes, "%d query heads on %d KV heads: up to 256, a multiple", l->query_heads, l->kv_heads);
	else if (!head_dimension(l->d_k))
		snprintf(why, why_bytes, "heads of d %d: 64, 80, 96, 128 or 256", l->d_k);
	else
		return 0;
	return -1;
}

// A number of the configuration, or `otherwise` where it is missing or null; -1 for anything else.
static int number(const json_t *config, const char *key, int otherwise)
{
	const json_t *value = json_object_get(config, key);
	if (!value || json_is_null(value))
		return otherwise;
	if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > 1 << 24)
		return -1;
	return (int)json_integer_value(value);
}

// Which layers see a window only. By layer_types where there are any; else all of them, as transformers does it.
static int windows(const json_t *config, struct plan_shape *s, char *why, size_t why_bytes)
{
	int window = number(config, "sliding_window", 0);
	const json_t *types = json_object_get(config, "layer_types"), *used = json_object_get(config, "use_sliding_window");
	if (json_is_false(used))
		window = 0;
	if (types && !json_is_null(types) && (!json_is_array(types) || (int)json_array_size(types) < s->layers)) {
		snprintf(why, why_bytes, "layer_types does not name %d layers", s->layers);
		return -1;
	}
	for (int i = 0; i < s->layers; i++) {
		const char *type = json_is_array(types) ? json_string_value(json_array_get(types, (size_t)i)) : NULL;
		bool sliding = type ? strcmp(type, "sliding_attention") == 0 : window > 0;
		if (type && !sliding && strcmp(type, "full_attention") != 0) {
			snprintf(why, why_bytes,
			         "layer %d is of type %.40s: only full_attention and sliding_attention are supported", i, type);
			return -1;
		}
		s->layer[i].window = sliding ? window : 0;
	}
	return 0;
}

static int from_config(const json_t *root, struct plan_shape *s, char *why, size_t why_bytes)
{
	const json_t *text = json_object_get(root, "text_config"), *config = json_is_object(text) ? text : root;
	const char *type = json_string_value(json_object_get(config, "model_type"));
	int heads = number(config, "num_attention_heads", -1), hidden = number(config, "hidden_size", -1);
	int kv = number(config, "num_key_value_heads", heads),
	    d = number(config, "head_dim", heads > 0 && hidden > 0 ? hidden / heads : -1);
	if (number(config, "kv_lora_rank", 0)) {
		snprintf(why, why_bytes, "it has latent attention (kv_lora_rank), which keeps no K and V by head");
		return -1;
	}
	s->layers = number(config, "num_hidden_layers", -1);
	if (s->layers < 1 || s->layers > PLAN_MAX_LAYERS || heads < 1 || kv < 1 || d < 1) {
		snprintf(why, why_bytes, "num_hidden_layers, num_attention_heads and head_dim or hidden_size must be numbers");
		return -1;
	}
	snprintf(s->name, sizeof(s->name), "%s", type ? type : "model");
	for (int i = 0; i < s->layers; i++)
		s->layer[i] = (struct mpig_layer){.query_heads = heads, .kv_heads = kv, .d_k = d};
	return windows(config, s, why, why_bytes);
}

static int read_config(const char *path, struct plan_shape *s, char *why, size_t why_bytes)
{
	json_error_t error;
	FILE *in = fopen(path, "re");
	char *text = malloc(MAX_CONFIG_BYTES);
	size_t bytes = in && text ? fread(text, 1, MAX_CONFIG_BYTES, in) : 0;
	bool bad = !in || !text || ferror(in);
	if (bad)
		snprintf(why, why_bytes, "%s", strerror(errno));
	if (in)
		fclose(in);
	json_t *root = bad ? NULL : json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
	int status = -1;
	if (!bad && !root)
		snprintf(why, why_bytes, "line %d: %.80s", error.line, error.text);
	else if (root && !json_is_object(root))
		snprintf(why, why_bytes, "not the configuration of a model");
	else if (root)
		status = from_config(root, s, why, why_bytes);
	json_decref(root);
	free(text);
	return status;
}

int plan_shape_read(const char *text, bool keep_sliding, struct plan_shape *s, char *why, size_t why_bytes)
{
	int layers, query, kv, d, end = 0, status = 0;
	*s = (struct plan_shape){0};
	if (sscanf(text, "%d/%d/%d/%d%n", &layers, &query, &kv, &d, &end) == 4 && !text[end]) {
		s->layers = layers;
		snprintf(s->name, sizeof(s->name), "model");
		for (int i = 0; i < layers && i < PLAN_MAX_LAYERS; i++)
			s->layer[i] = (struct mpig_layer){.query_heads = query, .kv_heads = kv, .d_k = d};
	} else {
		status = read_config(text, s, why, why_bytes);
	}
	if (status || (status = check(s, why, why_bytes)))
		return status;
	for (int i = 0; i < s->layers; i++)
		s->layer[i].kind = s->layer[i].window && !keep_sliding ? MPIG_LAYER_SLIDING : MPIG_LAYER_GLOBAL;
	return 0;
}
