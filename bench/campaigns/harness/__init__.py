"""What campaigns share: the count (`campaign.py`), and what plays a case.

`fault_episodes.py` is one run of scripted groups that are hurt at random moments, episode after episode, with the promises that must hold after each;
`slow_episodes.py` is the same run with engines that are slow but alive. `checking_trainer.py` is the trainer of `drains`: it compares every answer with the
undisturbed one.
"""
