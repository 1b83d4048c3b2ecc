"""What the authors of the releases ask to be cited, in BibTeX."""

from __future__ import annotations

COCO = r"""@inproceedings{lin2014coco,
  title = {Microsoft {COCO}: Common Objects in Context},
  author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and
    Perona, Pietro and Ramanan, Deva and Doll{\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle = {European Conference on Computer Vision},
  year = {2014}
}

@article{chen2015captions,
  title = {Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and
    Gupta, Saurabh and Doll{\'a}r, Piotr and Zitnick, C. Lawrence},
  journal = {arXiv:1504.00325},
  year = {2015}
}"""

VISUAL_GENOME = r"""@article{krishna2017visualgenome,
  title = {Visual Genome: Connecting Language and Vision Using Crowdsourced Dense Image
    Annotations},
  author = {Krishna, Ranjay and Zhu, Yuke and Groth, Oliver and Johnson, Justin and Hata, Kenji and
    Kravitz, Joshua and Chen, Stephanie and Kalantidis, Yannis and Li, Li-Jia and Shamma, David A.
    and Bernstein, Michael S. and Fei-Fei, Li},
  journal = {International Journal of Computer Vision},
  year = {2017}
}"""

SBU = r"""@inproceedings{ordonez2011im2text,
  title = {{Im2Text}: Describing Images Using 1 Million Captioned Photographs},
  author = {Ordonez, Vicente and Kulkarni, Girish and Berg, Tamara L.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2011}
}"""

CC3M = r"""@inproceedings{sharma2018conceptual,
  title = {Conceptual Captions: A Cleaned, Hypernymed, Image Alt-text Dataset For Automatic Image
    Captioning},
  author = {Sharma, Piyush and Ding, Nan and Goodman, Sebastian and Soricut, Radu},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year = {2018}
}"""

CC12M = r"""@inproceedings{changpinyo2021conceptual12m,
  title = {Conceptual {12M}: Pushing Web-Scale Image-Text Pre-Training To Recognize Long-Tail Visual
    Concepts},
  author = {Changpinyo, Soravit and Sharma, Piyush and Ding, Nan and Soricut, Radu},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2021}
}"""

OBJECTS365 = r"""@inproceedings{shao2019objects365,
  title = {{Objects365}: A Large-Scale, High-Quality Dataset for Object Detection},
  author = {Shao, Shuai and Li, Zeming and Zhang, Tianyuan and Peng, Chao and Yu, Gang and
    Zhang, Xiangyu and Li, Jing and Sun, Jian},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year = {2019}
}"""

OPEN_IMAGES = r"""@article{kuznetsova2020openimages,
  title = {The Open Images Dataset {V4}: Unified Image Classification, Object Detection, and Visual
    Relationship Detection at Scale},
  author = {Kuznetsova, Alina and Rom, Hassan and Alldrin, Neil and Uijlings, Jasper and
    Krasin, Ivan and Pont-Tuset, Jordi and Kamali, Shahab and Popov, Stefan and
    Malloci, Matteo and Kolesnikov, Alexander and Duerig, Tom and Ferrari, Vittorio},
  journal = {International Journal of Computer Vision},
  year = {2020}
}"""

REFCOCO = r"""@inproceedings{yu2016refcoco,
  title = {Modeling Context in Referring Expressions},
  author = {Yu, Licheng and Poirson, Patrick and Yang, Shan and Berg, Alexander C. and
    Berg, Tamara L.},
  booktitle = {European Conference on Computer Vision},
  year = {2016}
}

@inproceedings{kazemzadeh2014referitgame,
  title = {{ReferItGame}: Referring to Objects in Photographs of Natural Scenes},
  author = {Kazemzadeh, Sahar and Ordonez, Vicente and Matten, Mark and Berg, Tamara L.},
  booktitle = {Conference on Empirical Methods in Natural Language Processing},
  year = {2014}
}"""

REFCOCOG = r"""@inproceedings{mao2016refcocog,
  title = {Generation and Comprehension of Unambiguous Object Descriptions},
  author = {Mao, Junhua and Huang, Jonathan and Toshev, Alexander and Camburu, Oana and
    Yuille, Alan L. and Murphy, Kevin},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2016}
}"""

FLICKR30K = r"""@article{young2014flickr30k,
  title = {From Image Descriptions to Visual Denotations: New Similarity Metrics for Semantic
    Inference over Event Descriptions},
  author = {Young, Peter and Lai, Alice and Hodosh, Micah and Hockenmaier, Julia},
  journal = {Transactions of the Association for Computational Linguistics},
  year = {2014}
}

@inproceedings{plummer2015flickr30kentities,
  title = {{Flickr30k} Entities: Collecting Region-to-Phrase Correspondences for Richer
    Image-to-Sentence Models},
  author = {Plummer, Bryan A. and Wang, Liwei and Cervantes, Chris M. and Caicedo, Juan C. and
    Hockenmaier, Julia and Lazebnik, Svetlana},
  booktitle = {IEEE International Conference on Computer Vision},
  year = {2015}
}"""

VQA = r"""@inproceedings{goyal2017vqa,
  title = {Making the {V} in {VQA} Matter: Elevating the Role of Image Understanding in Visual
    Question Answering},
  author = {Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and
    Parikh, Devi},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2017}
}"""

NLVR2 = r"""@inproceedings{suhr2019nlvr2,
  title = {A Corpus for Reasoning about Natural Language Grounded in Photographs},
  author = {Suhr, Alane and Zhou, Stephanie and Zhang, Ally and Zhang, Iris and Bai, Huajun and
    Artzi, Yoav},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year = {2019}
}"""
