"""Names of settings in other libraries: CORL, d3rlpy, Stable-Baselines3 and CleanRL."""

SYNONYMS = {
    "discount": ("gamma",), "gae_lambda": ("lam",), "lam": ("temperature",), "awac_lambda": ("temperature",),
    "iql_tau": ("expectile",), "beta": ("temperature",), "weight_temp": ("temperature",),
    "cql_n_actions": ("samples",), "n_action_samples": ("samples",), "conservative_weight": ("cql_alpha",),
    "actor_bc_coef": ("actor_bc",), "actor_beta": ("actor_bc",), "critic_bc_coef": ("critic_bc",),
    "critic_beta": ("critic_bc",), "num_critics": ("critics",), "n_critics": ("critics",),
    "policy_noise": ("target_noise",), "target_smoothing_sigma": ("target_noise",),
    "noise_clip": ("target_noise_clip",), "target_smoothing_clip": ("target_noise_clip",),
    "policy_freq": ("policy_delay",), "update_actor_interval": ("policy_delay",),
    "seq_len": ("context",), "context_size": ("context",), "embedding_dim": ("embedding",),
    "num_layers": ("blocks",), "num_heads": ("heads",),
    "learning_rate": ("lr", "actor_lr", "critic_lr"), "qf_lr": ("critic_lr", "lr"),
    "anneal_lr": ("decay_steps",), "ent_coef": ("entropy", "alpha"), "autotune": ("learn_alpha",),
    "clip_range": ("clip",), "clip_coef": ("clip",), "n_epochs": ("epochs",), "update_epochs": ("epochs",),
    "normalize_reward": ("reward", "normalize_reward"), "net_arch": ("hidden",), "hidden_dims": ("hidden",),
    "learning_starts": ("warm_up",), "buffer_size": ("capacity",), "train_freq": ("steps_per_update",),
    "train_frequency": ("steps_per_update",), "gradient_steps": ("updates_per_step",),
    "utd_ratio": ("updates_per_step",), "utd": ("updates_per_step",), "replay_ratio": ("updates_per_step",),
    "n_steps": ("batch",), "num_steps": ("batch",),
    "batch_size": ("minibatch", "batch"), "max_timesteps": ("updates",), "total_timesteps": ("steps",),
    "eval_freq": ("eval_every",), "n_episodes": ("eval_episodes",), "n_eval_episodes": ("eval_episodes",),
    "num_envs": ("envs",), "n_envs": ("envs",), "seed": ("seeds",), "load_model": ("init",), "env_id": ("env",),
    "checkpoints_path": ("out",),
}  # fmt: skip
"""What they are called here; an agent has some of these."""
